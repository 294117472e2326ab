//! Models by their name on the Hugging Face hub: `hf:owner/name`, found in the cache that all of its programs share, or downloaded into it.

#[cfg(feature = "download")]
mod download;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use attar_checkpoint::hf;
use serde_json::Value;

use crate::diagnostic::{Explain, Failure, Result};
use crate::talk::Talk;

/// What names of models on the hub begin with.
const PREFIX: &str = "hf:";

/// A model on the hub: `hf:owner/name`, or one of its files, `hf:owner/name/file.gguf`; then perhaps `@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    owner: String,
    name: String,
    file: Option<String>,
    revision: String,
}

impl Named {
    /// What a path on the command line names, if it names something on the hub.
    ///
    /// # Errors
    /// A name that is none.
    pub fn parse(path: &Path) -> Result<Option<Self>> {
        let Some(text) = path.to_str().and_then(|text| text.strip_prefix(PREFIX)) else { return Ok(None) };
        let wrong = || {
            Failure::new(format!("`{PREFIX}{text}` names no model on the hub"))
                .hint("write hf:owner/name, hf:owner/name@revision, or hf:owner/name/file.gguf")
        };
        let (place, revision) = text.split_once('@').unwrap_or((text, "main"));
        let mut parts = place.splitn(3, '/');
        let (owner, name) = parts.next().zip(parts.next()).ok_or_else(wrong)?;
        let file = parts.next();
        // What is looked up on a disk and asked for in an address must not lead elsewhere.
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let paths = [file.unwrap_or("model"), revision];
        if ![owner, name].into_iter().all(plain) || !paths.iter().all(|path| path.split('/').all(plain)) {
            return Err(wrong());
        }
        let [owner, name, revision] = [owner, name, revision].map(str::to_owned);
        Ok(Some(Self { owner, name, file: file.map(str::to_owned), revision }))
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// The cache of one repository.
struct Cached {
    folder: PathBuf,
}

impl Cached {
    fn of(named: &Named) -> Result<Self> {
        let cache = cache().ok_or_else(|| {
            Failure::new("there is no home folder to keep models in").hint("set HF_HOME to a folder")
        })?;
        Ok(Self { folder: cache.join(format!("models--{}--{}", named.owner, named.name)) })
    }

    /// The files of a revision: the folder of its commit, where that is known. Revisions may be commits themselves.
    fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.folder.join("refs").join(revision));
        let commit = commit.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
        Some(self.folder.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
    }
}

/// The folder of the hub's cache.
///
/// # Source
/// `huggingface_hub`, "Environment variables".
fn cache() -> Option<PathBuf> {
    set("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub")))
}

/// What a variable of the environment is set to.
fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn home() -> Option<PathBuf> {
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
    set("HF_HOME").or_else(|| Some(cache()?.join("huggingface")))
}

/// Whether a path names something on the hub.
pub fn is_named(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(PREFIX))
}

/// Puts the place on the disk where paths name models on the hub, which are downloaded first where they are not there.
///
/// # Errors
/// A name that is none, or of nothing; what keeps it from being downloaded.
pub fn settle<'a>(paths: impl IntoIterator<Item = &'a mut PathBuf>, talk: Talk) -> Result<()> {
    for path in paths {
        if let Some(named) = Named::parse(path)? {
            *path = local(&named, talk).doing(|| format!("while looking for `{}`", path.display()))?;
        }
    }
    Ok(())
}

fn local(named: &Named, talk: Talk) -> Result<PathBuf> {
    let cached = Cached::of(named)?;
    if let Some(found) = cached.snapshot(&named.revision).and_then(|folder| complete(&folder, named)) {
        return Ok(found);
    }
    fetched(named, &cached, talk)
}

#[cfg(feature = "download")]
fn fetched(named: &Named, cached: &Cached, talk: Talk) -> Result<PathBuf> {
    let offline = |name| env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    if offline("HF_HUB_OFFLINE") {
        return Err(missing(named, cached).hint("HF_HUB_OFFLINE forbids downloading it"));
    }
    let folder = download::run(named, &cached.folder, talk)?;
    complete(&folder, named).ok_or_else(|| {
        Failure::new(format!("`{}` has no model that attar reads", named.repository()))
            .hint("a model has config.json and *.safetensors, or is a .gguf file: hf:owner/name/file.gguf")
    })
}

#[cfg(not(feature = "download"))]
fn fetched(named: &Named, cached: &Cached, _talk: Talk) -> Result<PathBuf> {
    let repository = named.repository();
    Err(missing(named, cached).hint(format!(
        "download it: hf download {repository}; or build attar with its feature `download`, which does"
    )))
}

fn missing(named: &Named, cached: &Cached) -> Failure {
    Failure::new(format!(
        "`{}` at `{}` is not complete in the cache, `{}`",
        named.repository(),
        named.revision,
        cached.folder.display()
    ))
}

/// The model in a snapshot, if all of it is there.
fn complete(folder: &Path, named: &Named) -> Option<PathBuf> {
    if let Some(file) = &named.file {
        return Some(folder.join(file)).filter(|path| path.is_file());
    }
    let has = |name: &str| folder.join(name).is_file();
    let tokenizer = ["tokenizer.json", "tokenizer.model", "vocab.json"].into_iter().any(has);
    let weights = has("model.safetensors") || shards(folder)?.iter().all(|name| has(name));
    (has(hf::CONFIG) && tokenizer && weights).then(|| folder.to_owned())
}

/// The files that an index of shards names.
fn shards(folder: &Path) -> Option<Vec<String>> {
    let index = fs::read(folder.join("model.safetensors.index.json")).ok()?;
    let index: Value = serde_json::from_slice(&index).ok()?;
    let map = index["weight_map"].as_object()?;
    Some(map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// What a model in the hub's cache is called there: `name` of `owner/name`.
pub fn name_in_cache(path: &Path) -> Option<String> {
    let snapshots = path.parent().filter(|folder| folder.ends_with("snapshots"))?;
    let repository = snapshots.parent()?.file_name()?.to_str()?;
    repository.strip_prefix("models--")?.split_once("--").map(|(_, name)| name.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        let parse = |text: &str| Named::parse(Path::new(text));
        let named = |file: Option<&str>, revision: &str| Named {
            owner: "Qwen".to_owned(),
            name: "Qwen3-0.6B".to_owned(),
            file: file.map(str::to_owned),
            revision: revision.to_owned(),
        };
        assert_eq!(parse("hf:Qwen/Qwen3-0.6B").unwrap(), Some(named(None, "main")));
        assert_eq!(parse("hf:Qwen/Qwen3-0.6B@v1.2").unwrap(), Some(named(None, "v1.2")));
        assert_eq!(parse("hf:Qwen/Qwen3-0.6B@refs/pr/3").unwrap(), Some(named(None, "refs/pr/3")));
        let file = parse("hf:Qwen/Qwen3-0.6B/sub/q4_0.gguf@main").unwrap();
        assert_eq!(file, Some(named(Some("sub/q4_0.gguf"), "main")));
        assert_eq!(parse("Qwen/Qwen3-0.6B").unwrap(), None);
        for wrong in [
            "hf:",
            "hf:name",
            "hf:a/",
            "hf:../b",
            "hf:a/..",
            "hf:a/b/../c",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b?c",
        ] {
            let told = parse(wrong).unwrap_err().to_string();
            assert!(told.contains("names no model") && told.contains("hf:owner/name"), "{told}");
        }
    }

    #[test]
    fn models_in_the_cache_have_the_name_of_their_repository() {
        let name = |path: &str| name_in_cache(Path::new(path));
        assert_eq!(name("hub/models--Qwen--Qwen3-0.6B/snapshots/0123ab").as_deref(), Some("Qwen3-0.6B"));
        assert_eq!(name("hub/models--Qwen--Qwen3-0.6B/0123ab"), None);
        assert_eq!(name("books-7m"), None);
    }
}
