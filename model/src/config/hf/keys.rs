//! Typed access to JSON.

use super::unsupported;
use crate::Error;
use crate::config::{listed, value};
use serde_json::Value;

/// Typed access to the keys of a JSON object. A key whose value is null is a key that is not there.
#[derive(Clone, Copy)]
pub struct Keys<'a>(pub(super) &'a Value);

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub fn read<T>(
        self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.get(key).map(|found| read(found).ok_or_else(|| value(key, found, expected.into()))).transpose()
    }

    pub fn size(self, key: &str) -> Result<Option<usize>, Error> {
        self.read(key, "a whole number", |x| x.as_u64().and_then(|x| x.try_into().ok()))
    }

    pub fn needed(self, key: &str) -> Result<usize, Error> {
        self.size(key)?.ok_or_else(|| Error::Missing { key: key.into() })
    }

    pub(super) fn number(self, key: &str) -> Result<Option<f64>, Error> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn needed_number(self, key: &str) -> Result<f64, Error> {
        self.number(key)?.ok_or_else(|| Error::Missing { key: key.into() })
    }

    pub fn flag(self, key: &str) -> Result<bool, Error> {
        self.flag_or(key, false)
    }

    pub(super) fn flag_or(self, key: &str, default: bool) -> Result<bool, Error> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn needed_numbers(self, key: &str) -> Result<Vec<f32>, Error> {
        let numbers = |x: &Value| x.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect();
        self.read(key, "a list of numbers", numbers)?.ok_or_else(|| Error::Missing { key: key.into() })
    }

    /// A list with one entry for each layer.
    pub(super) fn per_layer(self, key: &str, layers: usize) -> Result<Option<&'a [Value]>, Error> {
        let Some(list) = self.read(key, "a list", Value::as_array)? else { return Ok(None) };
        let expected = || format!("one entry for each of {layers} layers");
        let entries = list.get(..layers).filter(|_| list.len() == layers);
        entries.map(Some).ok_or_else(|| value(key, format!("a list of {}", list.len()), expected()))
    }

    pub(super) fn one_of(self, key: &str, default: &'a str, known: &[&str]) -> Result<&'a str, Error> {
        let found = self.read(key, "a name", Value::as_str)?.unwrap_or(default);
        if known.contains(&found) {
            Ok(found)
        } else {
            Err(unsupported(key, format!("`{found}`"), listed(known.iter().copied())))
        }
    }

    /// A token, or a list of them.
    pub(super) fn tokens(self, key: &str) -> Result<Vec<u32>, Error> {
        let token = |x: &Value| x.as_u64().and_then(|x| u32::try_from(x).ok());
        let tokens = self.read(key, "a token or a list of tokens", |x| match x {
            Value::Array(tokens) => tokens.iter().map(token).collect(),
            one => token(one).map(|token| vec![token]),
        })?;
        Ok(tokens.unwrap_or_default())
    }
}
