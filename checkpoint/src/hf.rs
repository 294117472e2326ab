//! A Hugging Face folder's JSON.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::quantization::CONFIG_KEY;
use crate::{Error, modelopt};

/// The file every model folder has.
pub const CONFIG: &str = "config.json";
/// The file with defaults for generation, which many have.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// A model folder and what its JSON files say; nothing in them has been believed yet.
#[derive(Debug, Clone)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// [`CONFIG`], an object.
    pub config: Value,
    /// [`GENERATION_CONFIG`], an object, where there is one.
    pub generation_config: Option<Value>,
}

impl Folder {
    /// Reads the JSON files of the folder at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] where `config.json` is missing or unreadable, [`Error::Json`] where a file is not a JSON object.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut config = read_object(&path.join(CONFIG))?;
        if config.get(CONFIG_KEY).is_none()
            && let Ok(said) = read_object(&path.join(modelopt::FILE))
            && let Some(said) = modelopt::Config::in_file(&said)
        {
            config[CONFIG_KEY] = said;
        }
        let generation_config = match read_object(&path.join(GENERATION_CONFIG)) {
            Ok(object) => Some(object),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_path_buf(), config, generation_config })
    }
}

/// Reads a JSON file whose outermost value is an object.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, [`Error::Json`] where it is something else.
pub fn read_object(path: &Path) -> Result<Value, Error> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    let object: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    Ok(Value::Object(object))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_config_is_read_and_the_generation_config_may_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), r#"{"b": 1, "a": 2}"#).unwrap();
        let read = Folder::open(folder.path()).unwrap();
        assert_eq!(read.config.to_string(), r#"{"b":1,"a":2}"#, "keys keep their order");
        assert_eq!(read.generation_config, None);
        fs::write(folder.path().join(GENERATION_CONFIG), "{}").unwrap();
        assert!(Folder::open(folder.path()).unwrap().generation_config.is_some());
    }

    #[test]
    fn a_missing_config_is_named() {
        let folder = tempfile::tempdir().unwrap();
        match Folder::open(folder.path()) {
            Err(Error::Io { path, .. }) => assert!(path.ends_with(CONFIG)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_config_that_is_no_json_object_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [(CONFIG, ""), (CONFIG, "[1]"), (CONFIG, "{\"a\":"), (GENERATION_CONFIG, "null")]
        {
            fs::write(folder.path().join(CONFIG), "{}").unwrap();
            fs::write(folder.path().join(file), text).unwrap();
            match Folder::open(folder.path()) {
                Err(Error::Json { path, .. }) => assert!(path.ends_with(file), "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
