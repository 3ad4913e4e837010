//! macOS: the console belongs to the user whose session is in front, also after fast user switching (login(1) and
//! loginwindow give `/dev/console` to him).

use std::os::unix::fs::MetadataExt;

pub(super) async fn is_local(uid: u32) -> bool {
    std::fs::metadata("/dev/console").is_ok_and(|console| console.uid() == uid)
}
