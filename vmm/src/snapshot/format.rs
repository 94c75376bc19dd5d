//! The frame of a snapshot's state file: named sections, each with its checksum. It knows nothing of what is inside.
//!
//! ```text
//! magic (8)  version (4)  sections (4)
//! section: name length (2)  name  length (8)  CRC-32 of name, a zero and body (4)  body
//! ```
//! Integers are little-endian. Nothing may follow the last section.

use crate::error::Error;

const MAGIC: &[u8; 8] = b"SERVINSN";
/// Bumped when the frame changes; the sections carry versions of their own.
const VERSION: u32 = 2;
/// No state file is longer than this: memory is in another file.
const MAX_LEN: usize = 256 << 20;

/// The sections of a state file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sections(Vec<(String, Vec<u8>)>);

impl Sections {
    pub(crate) fn push(&mut self, name: impl Into<String>, body: Vec<u8>) {
        self.0.push((name.into(), body));
    }

    /// Takes a section out.
    pub(crate) fn take(&mut self, name: &str) -> Result<Vec<u8>, Error> {
        self.take_if_there(name).ok_or_else(|| Error::Snapshot(format!("it has no section {name}")))
    }

    /// Takes a section out that not every snapshot has.
    pub(crate) fn take_if_there(&mut self, name: &str) -> Option<Vec<u8>> {
        let index = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(index).1)
    }

    /// Every section must have been taken: an extra one is something that this program would lose.
    pub(crate) fn finish(self) -> Result<(), Error> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Error::Snapshot(format!("nothing here takes its section {name}"))),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        for (name, body) in &self.0 {
            bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&checksum(name, body));
            bytes.extend_from_slice(body);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |what: &str| Error::Snapshot(format!("the state file is damaged: {what}"));
        if bytes.len() > MAX_LEN {
            return Err(damaged("too long"));
        }
        let mut rest = bytes;
        let short = || damaged("it ends early");
        let magic: [u8; 8] = take(&mut rest).ok_or_else(short)?;
        if magic != *MAGIC {
            return Err(Error::Snapshot("the state file is not a snapshot".to_owned()));
        }
        let version = u32::from_le_bytes(take(&mut rest).ok_or_else(short)?);
        if version != VERSION {
            return Err(Error::Snapshot(format!(
                "its format is version {version}, this program knows {VERSION}"
            )));
        }
        let count = u32::from_le_bytes(take(&mut rest).ok_or_else(short)?);
        let mut sections = Self::default();
        for _ in 0..count {
            let name_len = u16::from_le_bytes(take(&mut rest).ok_or_else(short)?);
            let name = split(&mut rest, name_len.into()).ok_or_else(short)?;
            let name = std::str::from_utf8(name).map_err(|_| damaged("a name is no text"))?;
            let len = u64::from_le_bytes(take(&mut rest).ok_or_else(short)?);
            let sum: [u8; 4] = take(&mut rest).ok_or_else(short)?;
            let len = usize::try_from(len).map_err(|_| short())?;
            let body = split(&mut rest, len).ok_or_else(short)?;
            if checksum(name, body) != sum {
                return Err(damaged(&format!("section {name} has another checksum")));
            }
            if sections.0.iter().any(|(other, _)| other == name) {
                return Err(damaged(&format!("section {name} comes twice")));
            }
            sections.push(name, body.to_vec());
        }
        if !rest.is_empty() {
            return Err(damaged("bytes follow the last section"));
        }
        Ok(sections)
    }
}

/// Against damage, not against forgers: who can write a snapshot can write its checksum. A stronger sum cost a start half a
/// million instructions where the CPU has none for it.
fn checksum(name: &str, body: &[u8]) -> [u8; 4] {
    let mut sum = crc32fast::Hasher::new();
    for part in [name.as_bytes(), &[0], body] {
        sum.update(part);
    }
    sum.finalize().to_le_bytes()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn split<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Sections {
        let mut sections = Sections::default();
        sections.push("config", vec![1, 2, 3]);
        sections.push("vcpu0", vec![]);
        sections
    }

    #[test]
    fn sections_survive_the_way_out_and_back() {
        let mut back = Sections::decode(&sections().encode()).unwrap();
        assert_eq!(back, sections());
        assert_eq!(back.take("vcpu0").unwrap(), []);
        assert!(back.take("vcpu0").is_err());
        assert!(back.clone().finish().is_err());
        assert_eq!(back.take("config").unwrap(), [1, 2, 3]);
        back.finish().unwrap();
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_noticed() {
        let bytes = sections().encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Sections::decode(&damaged).is_err(), "byte {at}");
            assert!(Sections::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(Sections::decode(&[bytes, vec![0]].concat()).is_err());
    }
}
