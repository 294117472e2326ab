//! From the hub into its cache, as `huggingface_hub` does it: what is there is not asked for again, what was interrupted goes on.
//!
//! # Source
//! `huggingface_hub`, `file_download.py` and "Understand caching": blobs by their `ETag`, snapshots of links to them, refs to commits.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::Response;

use super::{Named, home};
use crate::diagnostic::{Explain, Failure, Result};
use crate::talk::{Stage, Talk, human_bytes};
use crate::text::hex;

const ENDPOINT: &str = "https://huggingface.co";

/// Places an answer may lead to before the file is there.
const REDIRECTS: usize = 5;

/// Times a file is asked for: each goes on where the one before broke off.
const TRIES: usize = 5;

const STEP: usize = 1 << 20;

/// Downloads what a model is made of, and gives the folder of its snapshot.
///
/// # Errors
/// A hub that does not answer or has no such model, a disk that refuses, a file that is not what was promised.
pub fn run(named: &Named, cache: &Path, talk: Talk) -> Result<PathBuf> {
    let hub = Hub::new();
    let listing = hub.listing(named)?;
    let wanted: Vec<_> = match &named.file {
        Some(file) => listing.names().filter(|name| *name == file).collect(),
        None => listing.names().filter(|name| belongs(name)).collect(),
    };
    let snapshot = cache.join("snapshots").join(&listing.sha);
    talk.note(&format!("downloading {} files of {} from the hub", wanted.len(), named.repository()));
    for name in wanted {
        let target = snapshot.join(name);
        if target.is_file() {
            continue;
        }
        let file = Wanted { hub: &hub, named, commit: &listing.sha, name };
        file.fetch(cache, &target, talk).doing(|| format!("while downloading `{name}`"))?;
    }
    if named.revision != listing.sha {
        let reference = cache.join("refs").join(&named.revision);
        fs::create_dir_all(reference.parent().unwrap_or(cache))?;
        fs::write(reference, &listing.sha)?;
    }
    Ok(snapshot)
}

/// Whether a file is part of what attar reads of a model.
fn belongs(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    match ending {
        _ if name.contains('/') => false,
        Some("safetensors") => !name.starts_with("consolidated"),
        Some("json" | "model" | "jinja") => true,
        _ => name == "merges.txt" || name == "LICENSE",
    }
}

/// What the hub says of a repository at a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Files that lie below the snapshot: a name that leads elsewhere is none of them.
    fn names(&self) -> impl Iterator<Item = &str> {
        let inside = |name: &&str| {
            name.split('/').all(|part| !part.is_empty() && part != ".." && !part.contains('\\'))
        };
        self.siblings.iter().map(|sibling| sibling.rfilename.as_str()).filter(inside)
    }
}

struct Hub {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
}

impl Hub {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            .user_agent(concat!("attar/", env!("CARGO_PKG_VERSION")))
            .build();
        let endpoint = env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        let kept = || fs::read_to_string(home()?.join("token")).ok();
        let token = env::var("HF_TOKEN").ok().or_else(kept).map(|token| token.trim().to_owned());
        Self { agent: config.into(), endpoint, token: token.filter(|token| !token.is_empty()) }
    }

    fn listing(&self, named: &Named) -> Result<Listing> {
        let Named { revision, .. } = named;
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, named.repository());
        let mut answer = self.get(&url, None)?;
        check(&answer, named)?;
        let text = answer.body_mut().read_to_string().doing(|| "while reading the hub's answer")?;
        let listing: Listing =
            serde_json::from_str(&text).doing(|| format!("while reading what {url} says"))?;
        let is_commit = !listing.sha.is_empty() && listing.sha.chars().all(|c| c.is_ascii_hexdigit());
        if is_commit { Ok(listing) } else { Err(Failure::new(format!("{url} names no commit"))) }
    }

    /// Asks for a page, from a byte on where that is not the first. The token is for the hub alone.
    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.token.as_ref().filter(|_| url.starts_with(&self.endpoint)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().doing(|| format!("while asking {url}")).hint(|| {
            "is there a network? a model downloaded elsewhere is a folder like any other; HF_ENDPOINT names a mirror"
        })
    }
}

/// Refuses answers that are none.
fn check(answer: &Response<Body>, named: &Named) -> Result<()> {
    let (status, repository) = (answer.status().as_u16(), named.repository());
    let failure = |what: &str| Failure::new(format!("the hub {what} (status {status})"));
    match status {
        200..=399 => Ok(()),
        401 | 403 => Err(failure(&format!("does not show `{repository}`")).hint(
            "if it exists, it is private or its licence must be accepted on its page first: then set HF_TOKEN",
        )),
        404 => Err(failure(&format!("has no `{repository}` at `{}`", named.revision))
            .hint("check owner, name and revision for a misprint")),
        _ => Err(failure(&format!("could not serve `{repository}`")).hint("try again later: what is there is kept")),
    }
}

/// A file of a model at a commit.
struct Wanted<'a> {
    hub: &'a Hub,
    named: &'a Named,
    commit: &'a str,
    name: &'a str,
}

/// What is said of a file before it comes.
struct Promise {
    etag: String,
    bytes: Option<u64>,
}

impl Promise {
    /// Of the first answer the hub gives: of large files it tells what the place that it leads to has.
    fn of(answer: &Response<Body>) -> Option<Self> {
        let header = |name: &str| answer.headers().get(name)?.to_str().ok();
        let etag = header("x-linked-etag").or_else(|| header("etag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let is_plain = !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let length = if answer.status().is_redirection() { "x-linked-size" } else { "content-length" };
        let bytes = header("x-linked-size").or_else(|| header(length)).and_then(|text| text.parse().ok());
        is_plain.then_some(Self { etag, bytes })
    }

    /// Whether the bytes of a file are those of its `ETag`, where that is their SHA-256, as it is of large files.
    fn is_kept(&self, blob: &Path) -> Result<bool> {
        if self.bytes.is_some_and(|bytes| fs::metadata(blob).is_ok_and(|found| found.len() != bytes)) {
            return Ok(false);
        }
        if self.etag.len() != 64 {
            return Ok(true);
        }
        let (mut file, mut hash, mut buffer) = (File::open(blob)?, Sha256::new(), vec![0; STEP]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hash.finalize()) == self.etag),
                read => hash.update(&buffer[..read]),
            }
        }
    }
}

impl Wanted<'_> {
    /// Brings the file into the cache, and a link to it into the snapshot.
    fn fetch(&self, cache: &Path, target: &Path, talk: Talk) -> Result<()> {
        let Self { hub, named, commit, name } = self;
        let url = format!("{}/{}/resolve/{commit}/{name}", hub.endpoint, named.repository());
        let answer = hub.get(&url, None)?;
        check(&answer, named)?;
        let promise = Promise::of(&answer).ok_or_else(|| Failure::new(format!("{url} has no ETag")))?;
        let blobs = cache.join("blobs");
        fs::create_dir_all(&blobs)?;
        let blob = blobs.join(&promise.etag);
        if !blob.is_file() {
            let partial = blobs.join(format!("{}.incomplete", promise.etag));
            let mut file = OpenOptions::new().create(true).append(true).read(true).open(&partial)?;
            file.lock()?; // another attar may be at it
            if !blob.is_file() {
                let stage = talk.errand(name, promise.bytes.unwrap_or_default(), "bytes");
                self.fill(&mut file, (&url, answer), &promise, &stage)?;
                if !promise.is_kept(&partial)? {
                    fs::remove_file(&partial)?;
                    return Err(Failure::new("what came is not what the hub promised").hint(
                        "try again; if it stays so, something between here and the hub changes files",
                    ));
                }
                fs::rename(&partial, &blob)?;
                stage.done();
            }
        }
        link(&blob, target)
    }

    /// Appends to `file` what it lacks, in as many answers as it takes.
    fn fill(
        &self,
        file: &mut File,
        (url, first): (&str, Response<Body>),
        promise: &Promise,
        stage: &Stage,
    ) -> Result<()> {
        let mut first = Some(first).filter(|_| file.metadata().is_ok_and(|found| found.len() == 0));
        let mut broken = None;
        for _ in 0..TRIES {
            let have = file.metadata()?.len();
            if have > 0 && promise.bytes.is_some_and(|bytes| have >= bytes) {
                return Ok(());
            }
            let answer = match first.take() {
                Some(answer) => self.follow(answer, url, None)?,
                None => self.follow(self.hub.get(url, Some(have))?, url, Some(have))?,
            };
            if answer.status().as_u16() == 206 {
                stage.step(have.saturating_sub(stage.position()), "");
            } else {
                file.set_len(0)?; // all of it comes again
                file.rewind()?;
            }
            match append(answer, file, stage) {
                Ok(())
                    if promise.bytes.is_none_or(|bytes| file.metadata().is_ok_and(|f| f.len() >= bytes)) =>
                {
                    return Ok(());
                }
                Ok(()) => broken = Some(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Err(error) => broken = Some(error),
            }
        }
        let have = human_bytes(file.metadata()?.len());
        let broken = broken.unwrap_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof));
        Err(broken)
            .doing(|| format!("with {have} of it there"))
            .hint(|| "run the same again: it goes on from here")
    }

    /// Goes where an answer leads until a file is there.
    fn follow(&self, mut answer: Response<Body>, url: &str, from: Option<u64>) -> Result<Response<Body>> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS {
            check(&answer, self.named)?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let leads = answer.headers().get("location").and_then(|place| place.to_str().ok());
            let leads = leads.ok_or_else(|| Failure::new(format!("{at} leads nowhere")))?;
            at = if leads.starts_with('/') {
                format!("{}{leads}", self.hub.endpoint)
            } else {
                leads.to_owned()
            };
            answer = self.hub.get(&at, from)?;
        }
        Err(Failure::new(format!("{url} leads from place to place")))
    }
}

fn append(answer: Response<Body>, file: &mut File, stage: &Stage) -> io::Result<()> {
    let (mut body, mut buffer) = (answer.into_body().into_reader(), vec![0; STEP]);
    loop {
        match body.read(&mut buffer)? {
            0 => return file.flush(),
            read => {
                file.write_all(&buffer[..read])?;
                stage.step(read as u64, "");
            }
        }
    }
}

/// Links to a blob as the hub's own programs do; where there are no links, copies it.
fn link(blob: &Path, target: &Path) -> Result<()> {
    let folder = target.parent().unwrap_or(target);
    fs::create_dir_all(folder)?;
    #[cfg(unix)]
    {
        // Relative, so that the cache can be moved: up from the file's folder to that of the repository.
        let snapshots = blob.parent().and_then(Path::parent).map(|cache| cache.join("snapshots"));
        let depth = snapshots.and_then(|at| Some(folder.strip_prefix(at).ok()?.components().count()));
        if let (Some(depth), Some(name)) = (depth, blob.file_name()) {
            let up: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
            return Ok(std::os::unix::fs::symlink(up.join("blobs").join(name), target)?);
        }
    }
    fs::copy(blob, target)?;
    Ok(())
}
