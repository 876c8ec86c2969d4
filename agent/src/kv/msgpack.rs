//! Reading MessagePack where it lies.
//!
//! Nothing is allocated and nothing is believed: a length that is written in the bytes only moves a cursor, and a
//! cursor cannot leave the bytes there are. Nesting is skipped without recursion.

use rmp::Marker;

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end inside a value.
    #[error("cut short")]
    Truncated,
    /// A byte that begins no value.
    #[error("no value begins with {0:#04x}")]
    Marker(u8),
    /// Another type than the field has.
    #[error("{field}: another type than expected")]
    Type {
        /// Name of the field.
        field: &'static str,
    },
    /// A number that makes no sense.
    #[error("{field}: {value} is out of range")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// A field without which the event says nothing.
    #[error("{field}: missing")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// Text that is not UTF-8.
    #[error("{field}: not UTF-8")]
    Text {
        /// Name of the field.
        field: &'static str,
    },
}

/// A value that has no parts, or the head of one that has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Head<'a> {
    Nil,
    Bool,
    /// Any integer; a negative one in two's complement.
    Int {
        bits: u64,
        negative: bool,
    },
    Float(f64),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Array(u32),
    Map(u32),
    Extension,
}

/// A cursor over bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn signed(value: i64) -> Head<'static> {
        Head::Int { bits: value as u64, negative: value < 0 }
    }

    fn unsigned(bits: u64) -> Head<'static> {
        Head::Int { bits, negative: false }
    }

    /// Reads a plain value whole, of an array or a map the length.
    pub fn head(&mut self) -> Result<Head<'a>, Malformed> {
        let first = self.u8()?;
        Ok(match Marker::from_u8(first) {
            Marker::Null => Head::Nil,
            Marker::True | Marker::False => Head::Bool,
            Marker::FixPos(value) => Self::unsigned(value.into()),
            Marker::FixNeg(value) => Self::signed(value.into()),
            Marker::U8 => Self::unsigned(self.u8()?.into()),
            Marker::U16 => Self::unsigned(self.u16()?.into()),
            Marker::U32 => Self::unsigned(self.u32()?.into()),
            Marker::U64 => Self::unsigned(u64::from_be_bytes(self.array()?)),
            Marker::I8 => Self::signed(i8::from_be_bytes(self.array()?).into()),
            Marker::I16 => Self::signed(i16::from_be_bytes(self.array()?).into()),
            Marker::I32 => Self::signed(i32::from_be_bytes(self.array()?).into()),
            Marker::I64 => Self::signed(i64::from_be_bytes(self.array()?)),
            Marker::F32 => Head::Float(f32::from_be_bytes(self.array()?).into()),
            Marker::F64 => Head::Float(f64::from_be_bytes(self.array()?)),
            Marker::FixStr(len) => Head::Text(self.take(len.into())?),
            Marker::Str8 => Head::Text(self.sized8()?),
            Marker::Str16 => Head::Text(self.sized16()?),
            Marker::Str32 => Head::Text(self.sized32()?),
            Marker::Bin8 => Head::Bytes(self.sized8()?),
            Marker::Bin16 => Head::Bytes(self.sized16()?),
            Marker::Bin32 => Head::Bytes(self.sized32()?),
            Marker::FixArray(len) => Head::Array(len.into()),
            Marker::Array16 => Head::Array(self.u16()?.into()),
            Marker::Array32 => Head::Array(self.u32()?),
            Marker::FixMap(len) => Head::Map(len.into()),
            Marker::Map16 => Head::Map(self.u16()?.into()),
            Marker::Map32 => Head::Map(self.u32()?),
            Marker::FixExt1 => self.extension(1)?,
            Marker::FixExt2 => self.extension(2)?,
            Marker::FixExt4 => self.extension(4)?,
            Marker::FixExt8 => self.extension(8)?,
            Marker::FixExt16 => self.extension(16)?,
            Marker::Ext8 => {
                let len = self.u8()?;
                self.extension(len.into())?
            }
            Marker::Ext16 => {
                let len = self.u16()?;
                self.extension(len.into())?
            }
            Marker::Ext32 => {
                let len = self.u32()?;
                self.extension(len as usize)?
            }
            Marker::Reserved => return Err(Malformed::Marker(first)),
        })
    }

    fn sized8(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u8()?;
        self.take(len.into())
    }

    fn sized16(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        self.take(len.into())
    }

    fn sized32(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    /// A type byte precedes the data.
    fn extension(&mut self, len: usize) -> Result<Head<'a>, Malformed> {
        self.u8()?;
        self.take(len)?;
        Ok(Head::Extension)
    }

    /// Passes over one value with everything in it, and gives its bytes.
    pub fn skip(&mut self) -> Result<&'a [u8], Malformed> {
        let from = self.rest;
        let mut left = 1u64;
        while left > 0 {
            left -= 1;
            left += match self.head()? {
                Head::Array(len) => u64::from(len),
                Head::Map(len) => 2 * u64::from(len),
                _ => 0,
            };
            // Every value takes a byte: more values than bytes cannot be there.
            if left > self.rest.len() as u64 {
                return Err(Malformed::Truncated);
            }
        }
        Ok(&from[..from.len() - self.rest.len()])
    }

    /// The length of an array; its elements follow.
    pub fn array_len(&mut self, field: &'static str) -> Result<u32, Malformed> {
        match self.head()? {
            Head::Array(len) => Ok(len),
            _ => Err(Malformed::Type { field }),
        }
    }

    /// A text, or `None` for nil.
    pub fn text(&mut self, field: &'static str) -> Result<Option<&'a str>, Malformed> {
        match self.head()? {
            Head::Nil => Ok(None),
            Head::Text(text) => std::str::from_utf8(text).map(Some).map_err(|_| Malformed::Text { field }),
            _ => Err(Malformed::Type { field }),
        }
    }

    /// A number that is not negative, or `None` for nil.
    pub fn whole(&mut self, field: &'static str) -> Result<Option<u64>, Malformed> {
        match self.head()? {
            Head::Nil => Ok(None),
            Head::Int { bits, negative: false } => Ok(Some(bits)),
            Head::Int { bits, .. } => Err(Malformed::Range { field, value: bits }),
            _ => Err(Malformed::Type { field }),
        }
    }
}
