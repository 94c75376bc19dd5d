//! Watching what is typed for the keys that detach.

/// Finds a key sequence in pieces of input.
#[derive(Debug, Default)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    /// How many of them were typed last; they are held back.
    typed: usize,
}

impl Detector {
    /// Watches for these keys; none never detach.
    pub(crate) fn new(keys: Vec<u8>) -> Self {
        Detector { keys, typed: 0 }
    }

    /// Takes a piece of input and gives what is to be passed on, and whether the whole sequence was typed (what was
    /// typed behind it is dropped).
    pub(crate) fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len());
        for &byte in input {
            while self.typed > 0 && self.keys.get(self.typed) != Some(&byte) {
                // Not the sequence after all: its shortest part that cannot be a beginning goes on.
                let keep = (0..self.typed)
                    .rev()
                    .find(|n| self.keys[..self.typed].ends_with(&self.keys[..*n]))
                    .unwrap_or(0);
                out.extend_from_slice(&self.keys[..self.typed - keep]);
                self.typed = keep;
            }
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return (out, true);
                }
            } else {
                out.push(byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8], pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut detector = Detector::new(keys.to_vec());
        let mut all = Vec::new();
        for piece in pieces {
            let (out, found) = detector.filter(piece);
            all.extend(out);
            if found {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn the_sequence_is_found_whole_or_in_pieces_and_not_passed_on() {
        assert_eq!(typed(b"\x10\x11", &[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(typed(b"\x10\x11", &[b"ab\x10", b"\x11"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn a_beginning_alone_is_passed_on_with_what_follows() {
        assert_eq!(typed(b"\x10\x11", &[b"\x10", b"x"]), (b"\x10x".to_vec(), false));
        assert_eq!(typed(b"\x10\x11", &[b"\x10\x10\x10x"]), (b"\x10\x10\x10x".to_vec(), false));
        assert_eq!(typed(b"\x10\x11", &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(typed(b"aab", &[b"aaab"]), (b"a".to_vec(), true));
    }

    #[test]
    fn without_keys_everything_is_passed_on() {
        assert_eq!(typed(b"", &[b"\x10\x11"]), (b"\x10\x11".to_vec(), false));
    }
}
