//! Any bytes on the control stream, cut anywhere, are frames or end the connection with a code; a message
//! that is understood says the same when it is sent again.
#![no_main]

use std::fmt::Debug;

use culvert_tunnel::control::{FrameError, FrameReader, FromClient, FromServer, MAX_FRAME, decode, encode};
use culvert_tunnel::enrol::{FromEnrollee, FromEnroller};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // A message by itself, so that the fuzzer need not find the length first.
    any_message(data);
    let Some((&cut, stream)) = data.split_first() else { return };
    let whole = frames([stream].into_iter());
    let in_parts = frames(stream.chunks(usize::from(cut).max(1)));
    assert_eq!(whole, in_parts, "frames depend on how the stream was cut");
    for payload in &whole.0 {
        any_message(payload);
    }
});

/// Every whole frame, and how the stream ended.
fn frames<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut reader = FrameReader::default();
    let mut seen = Vec::new();
    for part in parts {
        reader.push(part);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.len() <= MAX_FRAME);
                    seen.push(frame);
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(error.close().is_some(), "a stream that cannot be read on must be closed");
                    return (seen, Some(error));
                }
            }
        }
    }
    (seen, None)
}

fn any_message(payload: &[u8]) {
    message::<FromClient>(payload);
    message::<FromServer>(payload);
    message::<FromEnrollee>(payload);
    message::<FromEnroller>(payload);
}

fn message<M>(payload: &[u8])
where
    M: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    let Ok(message) = decode::<M>(payload) else { return };
    // What was read may be longer when it is written with every field; a peer would refuse that.
    let Ok(frame) = encode(&message) else { return };
    assert_eq!(decode::<M>(&frame[4..]).as_ref(), Ok(&message));
}
