//! Metadata values of a GGUF file.

// The value types' ids in the file.
pub(super) const U8: u32 = 0;
pub(super) const I8: u32 = 1;
pub(super) const U16: u32 = 2;
pub(super) const I16: u32 = 3;
pub(super) const U32: u32 = 4;
pub(super) const I32: u32 = 5;
pub(super) const F32: u32 = 6;
pub(super) const BOOL: u32 = 7;
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;
pub(super) const U64: u32 = 10;
pub(super) const I64: u32 = 11;
pub(super) const F64: u32 = 12;

/// A metadata value, tagged as in the file.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is its type's name")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array: all elements of one type. Arrays of arrays are refused on reading.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is its element type's name")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// Appends the value's type id and bytes, as the file has them.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(x) => number(out, U8, x.to_le_bytes()),
            Self::I8(x) => number(out, I8, x.to_le_bytes()),
            Self::U16(x) => number(out, U16, x.to_le_bytes()),
            Self::I16(x) => number(out, I16, x.to_le_bytes()),
            Self::U32(x) => number(out, U32, x.to_le_bytes()),
            Self::I32(x) => number(out, I32, x.to_le_bytes()),
            Self::F32(x) => number(out, F32, x.to_le_bytes()),
            Self::Bool(x) => number(out, BOOL, [u8::from(*x)]),
            Self::U64(x) => number(out, U64, x.to_le_bytes()),
            Self::I64(x) => number(out, I64, x.to_le_bytes()),
            Self::F64(x) => number(out, F64, x.to_le_bytes()),
            Self::String(text) => {
                out.extend(STRING.to_le_bytes());
                write_text(out, text);
            }
            Self::Array(array) => {
                out.extend(ARRAY.to_le_bytes());
                array.write(out);
            }
        }
    }

    /// The value as a non-negative integer, whatever integer type stores it.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float, whatever number type stores it.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            Self::I8(x) => Some(x.into()),
            Self::I16(x) => Some(x.into()),
            Self::I32(x) => Some(x.into()),
            Self::I64(x) => Some(x as f64),
            _ => self.as_u64().map(|x| x as f64),
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(x) => Some(x),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as an array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The value as a list of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::String(texts)) => Some(texts),
            _ => None,
        }
    }
}

fn number<const N: usize>(out: &mut Vec<u8>, id: u32, bytes: [u8; N]) {
    out.extend(id.to_le_bytes());
    out.extend(bytes);
}

/// Appends a text: its length in bytes, then the bytes.
pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Array {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => numbers(out, U8, v, |x| x.to_le_bytes()),
            Self::I8(v) => numbers(out, I8, v, |x| x.to_le_bytes()),
            Self::U16(v) => numbers(out, U16, v, |x| x.to_le_bytes()),
            Self::I16(v) => numbers(out, I16, v, |x| x.to_le_bytes()),
            Self::U32(v) => numbers(out, U32, v, |x| x.to_le_bytes()),
            Self::I32(v) => numbers(out, I32, v, |x| x.to_le_bytes()),
            Self::F32(v) => numbers(out, F32, v, |x| x.to_le_bytes()),
            Self::Bool(v) => numbers(out, BOOL, v, |&x| [u8::from(x)]),
            Self::U64(v) => numbers(out, U64, v, |x| x.to_le_bytes()),
            Self::I64(v) => numbers(out, I64, v, |x| x.to_le_bytes()),
            Self::F64(v) => numbers(out, F64, v, |x| x.to_le_bytes()),
            Self::String(texts) => {
                numbers(out, STRING, texts, |_| []);
                for text in texts {
                    write_text(out, text);
                }
            }
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index` as a value.
    pub fn get(&self, index: usize) -> Option<Value> {
        match self {
            Self::U8(v) => v.get(index).copied().map(Value::U8),
            Self::I8(v) => v.get(index).copied().map(Value::I8),
            Self::U16(v) => v.get(index).copied().map(Value::U16),
            Self::I16(v) => v.get(index).copied().map(Value::I16),
            Self::U32(v) => v.get(index).copied().map(Value::U32),
            Self::I32(v) => v.get(index).copied().map(Value::I32),
            Self::F32(v) => v.get(index).copied().map(Value::F32),
            Self::Bool(v) => v.get(index).copied().map(Value::Bool),
            Self::String(v) => v.get(index).cloned().map(Value::String),
            Self::U64(v) => v.get(index).copied().map(Value::U64),
            Self::I64(v) => v.get(index).copied().map(Value::I64),
            Self::F64(v) => v.get(index).copied().map(Value::F64),
        }
    }
}

/// An array's element type, length and elements.
fn numbers<T, const N: usize>(out: &mut Vec<u8>, id: u32, elements: &[T], encode: fn(&T) -> [u8; N]) {
    out.extend(id.to_le_bytes());
    out.extend((elements.len() as u64).to_le_bytes());
    for x in elements {
        out.extend(encode(x));
    }
}

impl From<u32> for Value {
    fn from(x: u32) -> Self {
        Self::U32(x)
    }
}

impl From<f32> for Value {
    fn from(x: f32) -> Self {
        Self::F32(x)
    }
}

impl From<bool> for Value {
    fn from(x: bool) -> Self {
        Self::Bool(x)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Self::Array(Array::String(texts))
    }
}
