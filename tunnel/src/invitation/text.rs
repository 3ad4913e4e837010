//! The outside of an invitation: prefix, base32, frame and checksum. Knows nothing of its fields.

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::InvitationError;

/// The prefix of the link.
pub(super) const LINK: &str = "culvert://enrol#";

/// The prefix of the text to type.
pub(super) const TYPED: &str = "culvert1";

/// Other spellings of [`LINK`]: some programs put a slash where a URL's path would begin, or
/// escape the `#`.
const LINK_SPELLINGS: [&str; 4] = [LINK, "culvert://enrol/#", "culvert://enrol%23", "culvert://enrol/%23"];

const VERSION: u8 = 1;

/// 40 bits: a wrong text passes once in 10^12.
const CHECKSUM: usize = 5;

/// Longer texts are not read on. The longest invitation takes less than half of it.
const MAX_TEXT: usize = 8192;

/// Crockford's base32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// `body` in its frame, as base32 behind `prefix`.
pub(super) fn to_text(prefix: &str, body: &[u8]) -> String {
    encode(prefix, VERSION, body)
}

fn encode(prefix: &str, version: u8, body: &[u8]) -> String {
    let mut frame = Zeroizing::new(Vec::with_capacity(body.len() + 16));
    frame.push(version);
    put_varint(&mut frame, body.len() as u64);
    frame.extend_from_slice(body);
    let checksum = checksum(&frame);
    frame.extend_from_slice(&checksum);
    let mut text = String::with_capacity(prefix.len() + frame.len() * 8 / 5 + 1);
    text.push_str(prefix);
    push_base32(&mut text, &frame);
    text
}

/// The body inside `text`.
pub(super) fn from_text(text: &str) -> Result<Zeroizing<Vec<u8>>, InvitationError> {
    // What a mail program or a shell leaves around it.
    let text = text.trim_matches(|c: char| c.is_whitespace() || "<>\"'`".contains(c));
    let payload = LINK_SPELLINGS
        .iter()
        .chain([&TYPED])
        .find_map(|prefix| strip_prefix_ignoring_case(text, prefix))
        .ok_or(InvitationError::NotAnInvitation)?;
    if payload.len() > MAX_TEXT {
        return Err(InvitationError::Damaged);
    }
    let (frame, spare_bits) = base32(payload).ok_or(InvitationError::Damaged)?;
    let Some((&version, mut rest)) = frame.split_first() else {
        return Err(InvitationError::Truncated);
    };
    let len = take_varint(&mut rest).ok_or(InvitationError::Truncated)?;
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_TEXT).ok_or(InvitationError::Damaged)?;
    match rest.len().checked_sub(len + CHECKSUM) {
        None => return Err(InvitationError::Truncated),
        Some(0) if spare_bits == Some(0) => {}
        Some(_) => return Err(InvitationError::Damaged),
    }
    let (covered, expected) = frame.split_at(frame.len() - CHECKSUM);
    if checksum(covered) != expected {
        return Err(InvitationError::Damaged);
    }
    if version != VERSION {
        return Err(InvitationError::UnknownVersion(version));
    }
    Ok(Zeroizing::new(rest[..len].to_vec()))
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn checksum(frame: &[u8]) -> [u8; CHECKSUM] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"culvert invitation\0");
    context.update(frame);
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&context.finish().as_ref()[..CHECKSUM]);
    checksum
}

fn push_base32(text: &mut String, bytes: &[u8]) {
    let mut bits = Bits::default();
    for &byte in bytes {
        bits.push(byte, 8);
        while let Some(symbol) = bits.take(5) {
            text.push(char::from(ALPHABET[usize::from(symbol)]));
        }
    }
    if bits.len > 0 {
        bits.push(0, 5 - bits.len);
        text.extend(bits.take(5).map(|symbol| char::from(ALPHABET[usize::from(symbol)])));
    }
}

/// The bytes, and the bits left over after the last: `Some(0)` as an encoder leaves them, `None`
/// when a whole character is left over. `None` for a character outside the alphabet.
fn base32(text: &str) -> Option<(Zeroizing<Vec<u8>>, Option<u8>)> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() * 5 / 8));
    let mut bits = Bits::default();
    for c in text.chars().filter(|c| !c.is_whitespace() && !is_dash(*c)) {
        bits.push(symbol(c)?, 5);
        bytes.extend(bits.take(8));
    }
    let spare = if bits.len < 5 { bits.take(bits.len) } else { None };
    Some((bytes, spare))
}

/// Hyphen and minus, and what word processors make of them.
const fn is_dash(c: char) -> bool {
    matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{ad}')
}

fn symbol(c: char) -> Option<u8> {
    let c = match c.to_ascii_lowercase() {
        'o' => '0',
        'i' | 'l' => '1',
        c => c,
    };
    ALPHABET.iter().position(|a| char::from(*a) == c).map(|at| at as u8)
}

/// A queue of fewer than 16 bits, first in, first out.
#[derive(Default)]
struct Bits {
    value: u16,
    len: u32,
}

impl Bits {
    fn push(&mut self, bits: u8, count: u32) {
        self.value = self.value << count | u16::from(bits);
        self.len += count;
    }

    fn take(&mut self, count: u32) -> Option<u8> {
        self.len = self.len.checked_sub(count)?;
        let taken = self.value >> self.len;
        self.value &= (1 << self.len) - 1;
        Some(taken as u8)
    }
}

/// Appends an unsigned LEB128 number.
pub(super) fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Takes an unsigned LEB128 number of at most 64 bits.
pub(super) fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_newer_invitation_is_told_apart_from_a_damaged_one() {
        let newer = encode(TYPED, 2, b"anything at all");
        assert_eq!(from_text(&newer), Err(InvitationError::UnknownVersion(2)));
        let damaged = newer.replace("culvert10", "culvert11");
        assert_ne!(damaged, newer);
        assert_eq!(from_text(&damaged), Err(InvitationError::Damaged));
    }

    #[test]
    fn a_text_that_ends_early_is_told_apart_from_a_damaged_one() {
        let whole = to_text(LINK, &[7; 90]);
        for end in LINK.len()..whole.len() {
            assert_eq!(from_text(&whole[..end]), Err(InvitationError::Truncated), "{end} characters");
        }
        assert_eq!(from_text(&format!("{whole}0")), Err(InvitationError::Damaged));
        assert_eq!(from_text(&format!("{whole}00")), Err(InvitationError::Damaged));
        assert_eq!(from_text(&LINK[..9]), Err(InvitationError::NotAnInvitation));
    }

    #[test]
    fn what_people_and_programs_do_to_a_text_does_no_harm() {
        let body = b"payload of some length";
        let plain = to_text(TYPED, body);
        let payload = &plain[TYPED.len()..];
        let dashed: String = payload.chars().flat_map(|c| [c, '-', '\u{2013}', ' ']).collect();
        let misread = payload.replace('0', "O").replace('1', "l");
        for text in [
            format!("culvert1-{dashed}"),
            format!("\n <{LINK}{payload}>\r\n"),
            format!("Culvert://Enrol/#{}\n{}", &payload[..20], &payload[20..]),
            format!("culvert://enrol%23{payload}"),
            format!("CULVERT1 {misread}"),
        ] {
            assert_eq!(from_text(&text).as_deref().map(Vec::as_slice), Ok(&body[..]), "{text:?}");
        }
    }

    #[test]
    fn a_length_that_no_invitation_has_is_refused_unread() {
        let mut frame = vec![VERSION];
        put_varint(&mut frame, u64::MAX);
        let mut text = TYPED.to_owned();
        push_base32(&mut text, &frame);
        assert_eq!(from_text(&text), Err(InvitationError::Damaged));
        let long = format!("{TYPED}{}", "0".repeat(MAX_TEXT + 1));
        assert_eq!(from_text(&long), Err(InvitationError::Damaged));
    }

    proptest! {
        #[test]
        fn any_body_survives_the_text(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(&*from_text(&to_text(TYPED, &body)).unwrap(), &body);
        }

        #[test]
        fn any_text_gives_an_answer(text in "(culvert1|culvert://enrol#)?.{0,80}") {
            prop_assert!(from_text(&text).is_err());
        }

        #[test]
        fn varints_survive(value in any::<u64>()) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take_varint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }
}
