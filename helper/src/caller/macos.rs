//! macOS: `LOCAL_PEERTOKEN` (XNU `bsd/sys/un.h`), the audit token of whoever used the other end last; and what its code
//! signature says (SecCode.h). A process that runs another program gets another token.
//!
//! `CULVERT_TEAM_ID` says at build time whose signature to ask for. `unsigned` means nobody's, for packages without an
//! Apple account, and so does a development build without it: callers are known by user alone then. A release that
//! was only forgotten to be told serves nobody.
#![allow(unsafe_code, reason = "getsockopt(LOCAL_PEERTOKEN) has no safe wrapper in the crates we use")]

use std::io;
use std::os::fd::AsRawFd;

use core_foundation::base::TCFType;
use core_foundation::data::CFData;
use security_framework::os::macos::code_signing::{Flags, GuestAttributes, SecCode, SecRequirement};
use tokio::net::UnixStream;

/// `bsd/sys/un.h`.
const SOL_LOCAL: libc::c_int = 0;
const LOCAL_PEERTOKEN: libc::c_int = 6;
/// Words of `audit_token_t` (mach/message.h); the second is the effective user (libbsm, `audit_token_to_euid`).
const WORDS: usize = 8;
const EUID: usize = 1;

/// Whose programs may call: team and identifiers of our own, signed with a Developer ID.
const TEAM: Option<&str> = option_env!("CULVERT_TEAM_ID");

pub(super) type Process = [u32; WORDS];

pub(super) fn of(stream: &UnixStream) -> io::Result<(u32, Process)> {
    let token = token(stream)?;
    match TEAM {
        Some("unsigned") => {}
        Some(team) => check(token, &requirement(team))?,
        None if cfg!(debug_assertions) => {}
        None => return Err(io::Error::new(io::ErrorKind::PermissionDenied, "this helper was built without its team")),
    }
    Ok((token[EUID], token))
}

pub(super) fn is_still(stream: &UnixStream, process: Process) -> bool {
    token(stream).is_ok_and(|now| now == process)
}

fn token(stream: &UnixStream) -> io::Result<Process> {
    let mut token = [0; WORDS];
    let mut len = size_of::<Process>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the life of `stream`, the kernel writes at most `len` bytes to `token` and the
    // new length to `len`.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), SOL_LOCAL, LOCAL_PEERTOKEN, token.as_mut_ptr().cast(), &raw mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if len as usize == size_of::<Process>() { Ok(token) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Developer ID (the intermediate's and the leaf's extension), our team, one of our programs; the language is that of
/// csreq(1).
fn requirement(team: &str) -> String {
    format!(
        "anchor apple generic and certificate 1[field.1.2.840.113635.100.6.2.6] exists \
         and certificate leaf[field.1.2.840.113635.100.6.1.13] exists \
         and certificate leaf[subject.OU] = \"{team}\" \
         and (identifier \"net.culvert.app\" or identifier \"net.culvert.ctl\")"
    )
}

fn check(token: Process, requirement: &str) -> io::Result<()> {
    let refused = |error| io::Error::new(io::ErrorKind::PermissionDenied, format!("the caller's signature: {error}"));
    let requirement: SecRequirement = requirement.parse().map_err(refused)?;
    let bytes: Vec<u8> = token.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let data = CFData::from_buffer(&bytes);
    let mut attributes = GuestAttributes::new();
    attributes.set_audit_token(data.as_concrete_TypeRef());
    let code = SecCode::copy_guest_with_attribues(None, &attributes, Flags::NONE).map_err(refused)?;
    code.check_validity(Flags::NONE, &requirement).map_err(refused)
}
