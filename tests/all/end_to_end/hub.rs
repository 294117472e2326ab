//! Models by their name on the hub: out of the cache, and out of a hub of the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use assert_cmd::Command;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::place::{Place, attar, fixture};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// `attar` with the hub's cache in this place, and no hub but the one at `endpoint`.
fn at_home(place: &Place, line: &str, endpoint: &str) -> Command {
    let mut command = attar(line);
    for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", place.at("home")).env("HF_ENDPOINT", endpoint).env("HF_TOKEN", TOKEN);
    command
}

fn sha256(bytes: &[u8]) -> String {
    attar::text::hex(&Sha256::digest(bytes))
}

/// A hub with one model. It breaks off large answers after some bytes as often as it is told to.
struct Hub {
    endpoint: String,
    files: BTreeMap<String, Vec<u8>>,
    asked: Arc<Mutex<Vec<String>>>, // path, range and whether a token came, of every request
}

impl Hub {
    fn start(files: BTreeMap<String, Vec<u8>>, breaks: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (asked, left) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Mutex::new(breaks)));
        let (hub, served) = (files.clone(), Arc::clone(&asked));
        // Lives as long as the tests' process does.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (hub, served, left) = (hub.clone(), Arc::clone(&served), Arc::clone(&left));
                thread::spawn(move || while answer(&stream, &hub, &served, &left).is_some() {});
            }
        });
        Self { endpoint, files, asked }
    }

    fn asked(&self, part: &str) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

/// Answers one request; `None` where no more will come.
fn answer(
    stream: &std::io::Result<TcpStream>,
    files: &BTreeMap<String, Vec<u8>>,
    asked: &Mutex<Vec<String>>,
    breaks: &Mutex<usize>,
) -> Option<()> {
    let mut stream = stream.as_ref().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<String> = lines.map(|line| line.to_lowercase()).collect();
    let range = headers.iter().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
    let token = headers.iter().any(|line| line.contains(&TOKEN.to_lowercase()));
    asked.lock().unwrap().push(format!("{path} from {range:?} token {token}"));
    let mut say = |status: &str, headers: &str, body: &[u8], length: usize| {
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()
    };
    if path == "/api/models/me/tiny/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        let text = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        say("200 OK", "", text.as_bytes(), text.len())?;
        return None;
    }
    let (large, name) = match path.strip_prefix("/cdn/") {
        Some(name) => (true, name.to_owned()),
        None => (false, path.strip_prefix(&format!("/me/tiny/resolve/{COMMIT}/"))?.to_owned()),
    };
    let Some(bytes) = files.get(&name) else {
        say("404 Not Found", "", b"no", 2)?;
        return None;
    };
    let hash = sha256(bytes);
    if !large && name.ends_with(".safetensors") {
        let there = format!(
            "location: /cdn/{name}\r\nx-linked-etag: \"{hash}\"\r\nx-linked-size: {}\r\n",
            bytes.len()
        );
        say("302 Found", &there, b"", 0)?;
        return None;
    }
    let from: usize = range.and_then(|from| from.parse().ok()).unwrap_or(0);
    let rest = &bytes[from..];
    let left = &mut *breaks.lock().unwrap();
    let sent = if large && *left > 0 { rest.len() / 3 } else { rest.len() };
    *left = left.saturating_sub(usize::from(large));
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    say(status, &format!("etag: W/\"{}\"\r\n", &hash[..40]), &rest[..sent], rest.len())?;
    None
}

fn model() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(fixture("books-2m")).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())
    };
    let more =
        [("original/consolidated.safetensors", "x"), ("pytorch_model.bin", "x"), ("../evil.json", "x")];
    let more = more.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    entries.map(read).chain(more).collect()
}

#[test]
fn a_model_in_the_cache_is_found_by_its_name() {
    let place = Place::new();
    let cached = place.at("home/hub/models--me--tiny");
    fs::create_dir_all(cached.join("refs")).unwrap();
    fs::write(cached.join("refs/main"), COMMIT).unwrap();
    place.link_folder(&fixture("books-2m"), &format!("home/hub/models--me--tiny/snapshots/{COMMIT}"));
    for name in ["hf:me/tiny".to_owned(), format!("hf:me/tiny@{COMMIT}")] {
        let run = place.run_with(&mut at_home(&place, &format!("inspect {name}"), "http://127.0.0.1:1"));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stdout.contains("2,229,504"), "{}", run.stdout);
    }
    let line = "convert hf:me/tiny -o tiny.gguf --quiet";
    assert_eq!(place.run_with(&mut at_home(&place, line, "http://127.0.0.1:1")).code, Some(0));
    let text = place.done("inspect tiny.gguf -v");
    assert!(text.contains("general.name") && text.contains("tiny"), "{text}");
}

#[test]
fn a_model_of_the_hub_is_downloaded_once_and_goes_on_where_it_broke_off() {
    let place = Place::new();
    let hub = Hub::start(model(), 2);
    let inspect = || place.run_with(&mut at_home(&place, "inspect hf:me/tiny", &hub.endpoint));
    let run = inspect();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("2,229,504"), "{}", run.stdout);

    let cached = place.at("home/hub/models--me--tiny");
    assert_eq!(fs::read_to_string(cached.join("refs/main")).unwrap(), COMMIT);
    let weights = &hub.files["model.safetensors"];
    let snapshot = cached.join("snapshots").join(COMMIT);
    let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(weights)));
    assert_eq!(&fs::read(snapshot.join("model.safetensors")).unwrap(), weights);
    assert!(!snapshot.join("pytorch_model.bin").exists() && !snapshot.join("original").exists());
    assert!(!cached.join("snapshots/evil.json").exists() && !cached.join("evil.json").exists());

    let of_weights = hub.asked("/cdn/model.safetensors");
    assert_eq!(of_weights.len(), 3, "{of_weights:?}");
    assert!(of_weights[1].contains("Some") && of_weights[2].contains("Some"), "{of_weights:?}");
    assert!(hub.asked("resolve").iter().all(|line| line.ends_with("token true")));

    let before = hub.asked("").len();
    assert_eq!(inspect().code, Some(0));
    assert_eq!(hub.asked("").len(), before, "what is there is not asked for again");
}

#[test]
fn what_an_earlier_program_left_of_a_file_is_gone_on_with() {
    let place = Place::new();
    let hub = Hub::start(model(), 0);
    let weights = &hub.files["model.safetensors"];
    let blobs = place.at("home/hub/models--me--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(weights))), &weights[..1000]).unwrap();
    let run = place.run_with(&mut at_home(&place, "inspect hf:me/tiny", &hub.endpoint));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let of_weights = hub.asked("/cdn/model.safetensors");
    assert!(of_weights.len() == 1 && of_weights[0].contains("1000"), "{of_weights:?}");
}

#[test]
fn what_comes_otherwise_than_promised_is_not_kept() {
    let place = Place::new();
    let hub = Hub::start(model(), 0);
    let blobs = place.at("home/hub/models--me--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&hub.files["model.safetensors"])));
    fs::write(&partial, vec![1; 1000]).unwrap();
    let run = place.run_with(&mut at_home(&place, "inspect hf:me/tiny", &hub.endpoint));
    run.is_complaint(&["hf:me/tiny", "model.safetensors", "not what the hub promised"]);
    assert!(!partial.exists(), "the next try begins anew");
}

#[test]
fn a_name_of_nothing_and_a_hub_that_is_not_there_are_explained() {
    let place = Place::new();
    let hub = Hub::start(BTreeMap::new(), 0);
    let said = |line: &str, endpoint: &str, parts: &[&str]| {
        place.run_with(&mut at_home(&place, line, endpoint)).is_complaint(parts);
    };
    said("inspect hf:tiny", &hub.endpoint, &["names no model", "hf:owner/name"]);
    said("inspect hf:me/other", &hub.endpoint, &["hf:me/other"]);
    said("inspect hf:me/tiny", &hub.endpoint, &["no model that attar reads"]);
    said("inspect hf:me/tiny", "http://127.0.0.1:1", &["while asking", "HF_ENDPOINT"]);
    let mut offline = at_home(&place, "eval hf:me/tiny --text heldout.txt", &hub.endpoint);
    place
        .run_with(offline.env("HF_HUB_OFFLINE", "1"))
        .is_complaint(&["not complete in the cache", "HF_HUB_OFFLINE"]);
}

/// A snapshot may be a folder of links to files that are gone.
#[test]
fn half_a_model_in_the_cache_is_completed() {
    let place = Place::new();
    let hub = Hub::start(model(), 0);
    let snapshot = place.at("home/hub/models--me--tiny/snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(place.at("home/hub/models--me--tiny/refs")).unwrap();
    fs::write(place.at("home/hub/models--me--tiny/refs/main"), COMMIT).unwrap();
    symlink(fixture("books-2m").join("config.json"), snapshot.join("config.json")).unwrap();
    let run = place.run_with(&mut at_home(&place, "inspect hf:me/tiny", &hub.endpoint));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(hub.asked("config.json").iter().filter(|line| line.contains("/config.json")).count(), 0);
}
