//! Frames on the helper's socket: `u32` length (big-endian), then one JSON object. Pure.

use serde::{Serialize, de::DeserializeOwned};

/// The longest payload either side may send, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// Why a frame could not be read or written. The connection is of no use afterwards, since the
/// peer is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field exceeds [`MAX_FRAME`].
    #[error("a frame of {0} bytes exceeds the {MAX_FRAME}-byte limit")]
    Oversized(usize),
    /// The payload is not a message that this version knows.
    #[error("not a known message: {0}")]
    Malformed(String),
}

/// Joins stream bytes into frames. Holds at most one frame of [`MAX_FRAME`] bytes and one read.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Adds bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole payload; `None` while more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::Oversized`] as soon as the length is known, before the body arrives.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*header) as usize;
        if len > MAX_FRAME {
            return Err(FrameError::Oversized(len));
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        let rest = self.buffer.split_off(4 + len);
        let mut frame = std::mem::replace(&mut self.buffer, rest);
        frame.drain(..4);
        Ok(Some(frame))
    }

    /// True when part of a frame has arrived and the rest is due.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// One message as a frame.
///
/// # Errors
/// [`FrameError::Oversized`] for a message that no peer would take.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message).map_err(|error| FrameError::Malformed(error.to_string()))?;
    if json.len() > MAX_FRAME {
        return Err(FrameError::Oversized(json.len()));
    }
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&(json.len() as u32).to_be_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// The message in one payload.
///
/// # Errors
/// [`FrameError::Malformed`] with the parser's words.
pub fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(payload).map_err(|error| FrameError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_oversized_frame_is_refused_before_its_body_arrives() {
        let mut reader = FrameReader::default();
        reader.push(&(MAX_FRAME as u32 + 1).to_be_bytes());
        assert_eq!(reader.next_frame(), Err(FrameError::Oversized(MAX_FRAME + 1)));
    }

    #[test]
    fn a_message_that_no_peer_would_take_is_not_sent() {
        let long = "x".repeat(MAX_FRAME);
        assert_eq!(encode(&long), Err(FrameError::Oversized(MAX_FRAME + 2)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            bodies in proptest::collection::vec(".{0,200}", 1..6),
            cut in 1usize..40,
        ) {
            let wire: Vec<u8> = bodies.iter().flat_map(|body| encode(body).unwrap()).collect();
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for part in wire.chunks(cut) {
                reader.push(part);
                while let Some(frame) = reader.next_frame().unwrap() {
                    seen.push(decode::<String>(&frame).unwrap());
                }
            }
            prop_assert!(!reader.is_partial());
            prop_assert_eq!(seen, bodies);
        }

        #[test]
        fn garbage_never_panics_and_never_grows(parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut reader = FrameReader::default();
            for part in parts {
                reader.push(&part);
                while let Ok(Some(frame)) = reader.next_frame() {
                    let _ = decode::<crate::Ask>(&frame);
                }
            }
        }
    }
}
