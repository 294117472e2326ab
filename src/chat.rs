//! Conversations as text: the chat template that came with a tokenizer, run as transformers runs it.

use std::io;

use attar_checkpoint::tokenizer::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::diagnostic::{Explain, Failure, Result};

/// What errors call the template.
const NAME: &str = "chat template";

/// A conversation, and the tools that were at hand in it.
#[derive(Clone, Debug, Deserialize)]
pub struct Conversation {
    messages: Vec<serde_json::Map<String, serde_json::Value>>,
    tools: Option<serde_json::Value>,
}

/// A tokenizer's chat template, ready to write conversations out.
pub struct ChatTemplate {
    environment: Environment<'static>,
    specials: Vec<(String, String)>, // `bos_token` and so on, and their texts
}

impl ChatTemplate {
    /// The template that came with a tokenizer.
    ///
    /// # Errors
    /// There is none, or one that cannot be read.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let Some(template) = tokenizer.chat_template() else {
            return Err(Failure::new("the tokenizer has no chat template").hint(
                "put one beside it as chat_template.jinja, or write each conversation out under the key `text`",
            ));
        };
        let specials = tokenizer.special_tokens().map(|(name, text)| (name, text.to_owned()));
        Self::new(template, specials.collect())
    }

    fn new(template: &str, specials: Vec<(String, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", refuse);
        environment.add_function("strftime_now", date);
        environment
            .add_template_owned(NAME, without_generation(template)?)
            .doing(|| "while reading the chat template of the tokenizer")
            .hint(
                || "get the tokenizer's files again, or write each conversation out under the key `text`",
            )?;
        Ok(Self { environment, specials })
    }

    /// A conversation as the model is to see it, control tokens spelled out.
    ///
    /// # Errors
    /// No messages, or what the template says against them.
    pub fn write(&self, conversation: &Conversation) -> Result<String> {
        let Conversation { messages, tools } = conversation;
        if messages.is_empty() {
            return Err(Failure::new("a conversation of no messages")
                .hint("each message is an object such as {\"role\": \"user\", \"content\": \"...\"}"));
        }
        let mut given = serde_json::Map::new();
        for (name, text) in &self.specials {
            given.insert(name.clone(), text.as_str().into());
        }
        given.insert("messages".to_owned(), messages.iter().cloned().collect());
        given.insert("tools".to_owned(), tools.clone().unwrap_or_default());
        given.insert("documents".to_owned(), serde_json::Value::Null);
        given.insert("add_generation_prompt".to_owned(), false.into());
        let template = self.environment.get_template(NAME)?;
        template
            .render(Serde(given))
            .hint(|| "the tokenizer's chat template does not take this conversation: change its messages")
    }
}

/// The template without the marks that transformers puts around what an assistant said: all tokens are learned from.
fn without_generation(template: &str) -> Result<String> {
    let mark = Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")?;
    let opened = mark.replace_all(template, |found: &regex::Captures<'_>| {
        let word = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{word}{}", &found[1], &found[3])
    });
    Ok(opened.into_owned())
}

/// What a template says against a conversation.
fn refuse(message: &str) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// JSON as Python's `json.dumps(x, ensure_ascii=False)` writes it: nothing escaped for HTML.
#[expect(clippy::needless_pass_by_value, reason = "filters are called so")]
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let text = match indent {
        Some(indent) => in_json(value, PrettyFormatter::with_indent(" ".repeat(indent.min(16)).as_bytes())),
        None => in_json(value, OneLine),
    };
    let text = text.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

fn in_json(value: &Value, formatter: impl Formatter) -> std::result::Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One line, with a space behind each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The day on which all conversations take place, by the codes of C's `strftime`: a Friday, 2024-07-26 at midnight, the day that
/// Llama 3's template names where it is told none. With the day of the run the same command would give other tokens tomorrow.
fn date(format: &str) -> std::result::Result<String, Error> {
    let (mut text, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let part = match (code, bare) {
            (Some('Y'), _) => "2024",
            (Some('y'), _) => "24",
            (Some('m'), false) => "07",
            (Some('m'), true) => "7",
            (Some('d' | 'e'), _) => "26",
            (Some('B'), _) => "July",
            (Some('b' | 'h'), _) => "Jul",
            (Some('A'), _) => "Friday",
            (Some('a'), _) => "Fri",
            (Some('j'), _) => "208",
            (Some('F'), _) => "2024-07-26",
            (Some('H' | 'M' | 'S'), false) => "00",
            (Some('H' | 'M' | 'S'), true) => "0",
            (Some('I'), _) => "12",
            (Some('p'), _) => "AM",
            (Some('T'), _) => "00:00:00",
            (Some('%'), _) => "%",
            _ => {
                let code = code.map_or_else(String::new, String::from);
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now knows no %{code}"),
                ));
            }
        };
        text.push_str(part);
    }
    Ok(text)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(source, vec![("bos_token".to_owned(), "<s>".to_owned())])
    }

    fn write(source: &str, conversation: serde_json::Value) -> Result<String> {
        template(source)?.write(&serde_json::from_value(conversation).unwrap())
    }

    fn hello() -> serde_json::Value {
        json!({"messages": [{"role": "user", "content": " Hi <b> "}, {"role": "assistant", "content": "Ho"}]})
    }

    /// Blocks leave no lines behind, methods are Python's, nothing is escaped.
    #[test]
    fn a_conversation_is_written_as_transformers_writes_it() {
        let source = "{{ bos_token }}\n{%- for message in messages %}\n    {%- if message.role == 'user' %}\n\
                      {{ '[' ~ message['content'].strip() ~ ']' }}\n    {%- else %}\n{{ message.content + '\\n' }}\n    \
                      {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}";
        assert_eq!(write(source, hello()).unwrap(), "<s>[Hi <b>]Ho\n\n");
        let python = "{% set parts = messages[0].content.split('<b>') %}{{ parts[-1].lstrip() ~ parts[0].upper() }}\
                      {{ messages[1:] | length }}{{ messages[0].items() | list | length }}";
        assert_eq!(write(python, hello()).unwrap(), " HI 12");
    }

    #[test]
    fn json_is_what_python_writes() {
        let given = json!({"messages": [{"role": "user", "content": "<é'\""}],
                           "tools": [{"b": [1, 2.5, true, null], "a": {}}]});
        let source = "{{ messages[0] | tojson }}|{{ tools | tojson }}|{{ tools | tojson(indent=2) }}";
        let expected = "{\"role\": \"user\", \"content\": \"<é'\\\"\"}|[{\"b\": [1, 2.5, true, null], \"a\": {}}]|\
                        [\n  {\n    \"b\": [\n      1,\n      2.5,\n      true,\n      null\n    ],\n    \"a\": {}\n  }\n]";
        assert_eq!(write(source, given).unwrap(), expected);
    }

    #[test]
    fn the_day_is_always_the_same() {
        let source = "{{ strftime_now('%A, %d %B %Y, %-m/%-d, %H:%M') }}";
        assert_eq!(write(source, hello()).unwrap(), "Friday, 26 July 2024, 7/26, 00:00");
        assert!(write("{{ strftime_now('%Q') }}", hello()).unwrap_err().to_string().contains("no %Q"));
    }

    #[test]
    fn marks_of_what_an_assistant_said_are_left_out_and_loops_may_be_left() {
        let source = "{% for message in messages %}{% if message.role == 'user' %}{% continue %}{% endif %}\
                      {%- generation -%} {{ message.content }} {%- endgeneration %}{% endfor %}";
        assert_eq!(write(source, hello()).unwrap(), "Ho");
    }

    #[test]
    fn what_a_template_says_against_a_conversation_is_said_with_its_line() {
        let source =
            "{% if messages[0].role != 'system' %}\n{{ raise_exception('no system prompt') }}{% endif %}";
        let error = write(source, hello()).unwrap_err().to_string();
        assert!(error.contains("no system prompt") && error.contains("chat template:2"), "{error}");
        let error = template("{% for %}").err().unwrap().to_string();
        assert!(error.contains("while reading the chat template"), "{error}");
        let error = write("x", json!({"messages": []})).unwrap_err().to_string();
        assert!(error.contains("no messages"), "{error}");
    }
}
