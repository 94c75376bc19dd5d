//! `/etc/hosts` while the container runs: servin's lines change, those that the container's programs wrote stay.

use alloc::vec::Vec;

const NEWLINE: u8 = b'\n';

/// `current` with what differs between `before` and `after`, the lines as servin wrote them last and as they are to be:
/// lines that go are taken away once each, those that come stand in their place, or else behind those that were before them,
/// or at the end. All else stays, in its order.
pub(crate) fn changed(current: &[u8], before: &[u8], after: &[u8]) -> Vec<u8> {
    let (mut going, mut coming) = (lines(before), lines(after));
    let same = going.iter().zip(&coming).take_while(|(a, b)| a == b).count();
    let head: Vec<&[u8]> = going.drain(..same).collect();
    coming.drain(..same);
    while going.last().is_some_and(|line| coming.last() == Some(line)) {
        going.pop();
        coming.pop();
    }
    let mut kept = Vec::new();
    let (mut behind_head, mut place) = (None, None);
    for line in lines(current) {
        if let Some(at) = going.iter().position(|known| *known == line) {
            going.swap_remove(at);
            place.get_or_insert(kept.len());
            continue;
        }
        kept.push(line);
        if head.contains(&line) {
            behind_head = Some(kept.len());
        }
    }
    let (above, below) = kept.split_at(place.or(behind_head).unwrap_or(kept.len()));
    let mut text = Vec::with_capacity(current.len());
    for line in above.iter().chain(&coming).chain(below) {
        text.extend_from_slice(line);
        text.push(NEWLINE);
    }
    text
}

/// The lines, without their ends.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    let ended = text.split_inclusive(|byte| *byte == NEWLINE);
    ended.map(|line| line.strip_suffix(&[NEWLINE]).unwrap_or(line)).collect()
}

#[cfg(test)]
mod tests {
    const ONE: &str = "127.0.0.1 localhost\n10.1.0.5 box\n10.9.9.9 db\n";
    const TWO: &str = "127.0.0.1 localhost\n10.1.0.5 box\n10.2.0.5 box\n10.9.9.9 db\n";
    const OTHER: &str = "127.0.0.1 localhost\n10.2.0.5 box\n10.9.9.9 db\n";
    const NONE: &str = "127.0.0.1 localhost\n10.9.9.9 db\n";

    fn changed(current: &str, before: &str, after: &str) -> String {
        String::from_utf8(super::changed(current.as_bytes(), before.as_bytes(), after.as_bytes())).unwrap()
    }

    #[test]
    fn a_file_that_nobody_wrote_to_is_what_it_is_to_be() {
        for before in [ONE, TWO, OTHER, NONE, ""] {
            for after in [ONE, TWO, OTHER, NONE, ""] {
                assert_eq!(changed(before, before, after), after);
            }
        }
    }

    #[test]
    fn lines_that_somebody_else_wrote_stay_in_their_order() {
        let with = |text: &str| {
            format!(
                "# mine\n{}\n 10.3.0.1  x # y\n",
                text.replace("10.9.9.9 db", "10.8.0.1 own\n10.9.9.9 db\n")
            )
        };
        for before in [ONE, TWO, OTHER] {
            for after in [ONE, TWO, OTHER, NONE] {
                assert_eq!(changed(&with(before), before, after), with(after));
            }
        }
    }

    #[test]
    fn a_line_that_somebody_took_away_does_not_come_back() {
        assert_eq!(changed("10.1.0.5 box\n", ONE, TWO), "10.1.0.5 box\n10.2.0.5 box\n");
        assert_eq!(changed("10.9.9.9 db\n", TWO, ONE), "10.9.9.9 db\n");
        assert_eq!(changed("", ONE, OTHER), "10.2.0.5 box\n");
    }

    #[test]
    fn a_line_that_somebody_else_wrote_too_is_taken_away_once() {
        assert_eq!(
            changed("10.1.0.5 box\n10.4.0.1 a\n10.1.0.5 box\n", ONE, NONE),
            "10.4.0.1 a\n10.1.0.5 box\n"
        );
    }

    #[test]
    fn a_last_line_without_an_end_gets_one() {
        assert_eq!(changed("10.1.0.5 box\n10.4.0.1 a", ONE, NONE), "10.4.0.1 a\n");
        assert_eq!(changed("10.4.0.1 a\n10.1.0.5 box", ONE, TWO), "10.4.0.1 a\n10.1.0.5 box\n10.2.0.5 box\n");
    }
}
