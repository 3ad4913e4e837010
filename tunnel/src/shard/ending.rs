//! Why a connection ended, from QUIC's terms into ours.

use quinn_proto::ConnectionError;

use crate::close::{Close, Down};

/// The end of a connection. `heard`: the peer had answered at all.
pub(crate) fn down(reason: &ConnectionError, heard: bool) -> Down {
    let transport = |code: u64, local: bool| match code {
        // RFC 9001 section 4.8: 0x0100 and the TLS alert.
        0x100..=0x1ff => Down::Tls { alert: (code & 0xff) as u8, local },
        _ => Down::Transport(code),
    };
    match reason {
        ConnectionError::VersionMismatch => Down::VersionMismatch,
        ConnectionError::TransportError(error) => transport(error.code.into(), true),
        ConnectionError::ConnectionClosed(close) => transport(close.error_code.into(), false),
        ConnectionError::ApplicationClosed(close) => match Close::from_code(close.error_code.into_inner()) {
            Some(code) => Down::Peer { code, reason: printable(&close.reason) },
            None => Down::PeerUnknown(close.error_code.into_inner()),
        },
        ConnectionError::Reset => Down::Reset,
        ConnectionError::TimedOut if heard => Down::TimedOut,
        ConnectionError::TimedOut => Down::NoAnswer,
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => Down::Local(Close::Internal),
    }
}

/// A peer's words: at most 256 bytes, control characters replaced.
fn printable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(&reason[..reason.len().min(256)]);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
