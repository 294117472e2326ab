//! Files of reports, whoever wrote them.

use serde_json::Value;

use super::{Report, SCHEMA};

/// What the schemas of all reports, of whatever version, begin with.
const FAMILY: &str = "attar-report/";

/// Why a report could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A report that lacks a key, or has it otherwise.
    #[error("not a report of schema `{SCHEMA}`")]
    Malformed(#[from] serde_json::Error),
    /// No JSON at all.
    #[error("not JSON")]
    NoJson(#[source] serde_json::Error),
    /// JSON of something else.
    #[error("no report: {0}")]
    Other(&'static str),
    /// A report of another version.
    #[error("a report of a newer attar: its schema is `{0}`, and this version reads `{SCHEMA}` only")]
    Version(String),
    /// A list of no reports.
    #[error("a list of no reports")]
    Empty,
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Version(_) => "update attar, or have the version that wrote the report render it",
            _ => "name files that --json or --report wrote; attar report --schema tells what is in them",
        }
    }
}

/// The report of a file, or all where it holds a list of them; never none.
///
/// # Errors
/// What is not JSON, no report, of another schema, malformed, or an empty list.
pub fn read(json: &str) -> Result<Vec<Report>, Error> {
    let value: Value = serde_json::from_str(json).map_err(Error::NoJson)?;
    match value {
        Value::Array(list) if list.is_empty() => Err(Error::Empty),
        Value::Array(list) => list.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// The schema first: of another version nothing else is known.
fn one(value: Value) -> Result<Report, Error> {
    match value.get("schema") {
        None => Err(Error::Other("it has no key `schema`")),
        Some(Value::String(found)) if found == SCHEMA => Ok(serde_json::from_value(value)?),
        Some(Value::String(found)) if found.starts_with(FAMILY) => Err(Error::Version(found.clone())),
        Some(_) => Err(Error::Other("its `schema` is none of attar's reports")),
    }
}
