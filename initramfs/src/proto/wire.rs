//! Reading and writing the fields of a body.

use alloc::{string::String, vec::Vec};
use core::fmt;

/// Why bytes are not a message, or a message does not fit into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No frame of this kind exists, or it does not belong on this connection in this direction.
    UnknownKind(u16),
    /// The body is longer than its kind allows.
    TooLong {
        /// Kind of the frame.
        kind: u16,
        /// Length asked for, in bytes.
        length: usize,
    },
    /// The reserved bytes of the header are not zero.
    Reserved,
    /// The body ends in the middle of a field.
    Truncated,
    /// The body goes on after its last field.
    Trailing,
    /// A field has a value that it must not have; the field is named.
    Invalid(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind(kind) => write!(f, "a frame of kind {kind:#06x} does not belong here"),
            Self::TooLong { kind, length } => {
                write!(f, "a frame of kind {kind:#06x} may not be {length} bytes long")
            }
            Self::Reserved => f.write_str("the reserved bytes of a frame header are not zero"),
            Self::Truncated => f.write_str("a frame ends in the middle of a field"),
            Self::Trailing => f.write_str("a frame goes on after its last field"),
            Self::Invalid(field) => write!(f, "a frame has a bad value in {field}"),
        }
    }
}

impl core::error::Error for Error {}

/// The unread rest of a body.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        let [byte] = self.take()?;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Error> {
        self.take().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn bool(&mut self, field: &'static str) -> Result<bool, Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Invalid(field)),
        }
    }

    fn slice(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        self.slice().map(Vec::from)
    }

    /// Bytes that will become a C string: a NUL in the middle would silently cut them.
    pub(super) fn c_bytes(&mut self, field: &'static str) -> Result<Vec<u8>, Error> {
        let bytes = self.slice()?;
        if bytes.contains(&0) { Err(Error::Invalid(field)) } else { Ok(Vec::from(bytes)) }
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<String, Error> {
        let text = core::str::from_utf8(self.slice()?).map_err(|_| Error::Invalid(field))?;
        if text.contains('\0') { Err(Error::Invalid(field)) } else { Ok(String::from(text)) }
    }

    /// A list; `least` is the size of its smallest element, so that a count alone cannot cost memory.
    pub(super) fn list<T>(
        &mut self,
        least: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let count = self.u32()? as usize;
        if count.saturating_mul(least) > self.0.len() {
            return Err(Error::Truncated);
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(element(self)?);
        }
        Ok(list)
    }

    pub(super) fn option<T>(
        &mut self,
        field: &'static str,
        value: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.bool(field)? { value(self).map(Some) } else { Ok(None) }
    }

    pub(super) fn end(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Trailing) }
    }
}

/// Writes one frame; the header's length is filled in by [`Writer::finish`].
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kind: u16,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>, kind: u16) -> Self {
        let start = out.len();
        out.extend_from_slice(&super::frame::header(kind, 0));
        Self { out, start, kind }
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.out.push(value);
        self
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn i32(&mut self, value: i32) -> &mut Self {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// A length above `u32` cannot be encoded; it is cut here and refused by the limit in [`Writer::finish`],
    /// which counts the bytes themselves.
    fn count(&mut self, length: usize) -> &mut Self {
        self.u32(u32::try_from(length).unwrap_or(u32::MAX))
    }

    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.count(value.len());
        self.out.extend_from_slice(value);
        self
    }

    pub(super) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.out.extend_from_slice(value);
        self
    }

    pub(super) fn list<T>(&mut self, list: &[T], mut element: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.count(list.len());
        for value in list {
            element(self, value);
        }
        self
    }

    pub(super) fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) -> &mut Self {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    pub(super) fn finish(self) -> Result<(), Error> {
        let length = self.out.len() - self.start - super::HEADER_LEN;
        if super::kind::limit(self.kind).is_none_or(|limit| length > limit) {
            self.out.truncate(self.start);
            return Err(Error::TooLong { kind: self.kind, length });
        }
        let header = super::frame::header(self.kind, length as u32);
        self.out[self.start..self.start + super::HEADER_LEN].copy_from_slice(&header);
        Ok(())
    }
}
