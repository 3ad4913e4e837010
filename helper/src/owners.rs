//! Who may change the state of the VPN: root, users and members of a group that the helper was told of, and whoever
//! sits at this machine. Everybody else may look. `cfg` appears here and nowhere above.
//!
//! Asked anew for every conversation, since people log in and out.

use std::time::Duration;

use uzers::{get_group_by_name, get_user_by_uid, get_user_groups};

#[cfg(target_os = "linux")]
#[path = "owners/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "owners/macos.rs"]
mod imp;

/// A directory service that does not answer makes nobody an owner.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What the helper was told.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// These users.
    pub uids: Vec<u32>,
    /// Members of these groups, by name; one that does not exist has none.
    pub groups: Vec<String>,
    /// The user of the session that is active at this machine's own screen and keyboard.
    pub local: bool,
}

impl Owners {
    /// True when this user is one of them.
    pub async fn include(&self, uid: u32) -> bool {
        if uid == 0 || self.uids.contains(&uid) {
            return true;
        }
        if !self.groups.is_empty() {
            let groups = self.groups.clone();
            // It may ask a directory over the network (nsswitch.conf(5)), which is no work for this thread.
            let asked = tokio::task::spawn_blocking(move || is_member(uid, &groups));
            if matches!(tokio::time::timeout(ANSWER_WITHIN, asked).await, Ok(Ok(true))) {
                return true;
            }
        }
        self.local && tokio::time::timeout(ANSWER_WITHIN, imp::is_local(uid)).await.unwrap_or(false)
    }
}

/// By the user database as it is now, not as it was when the caller logged in (getgrouplist(3)).
fn is_member(uid: u32, groups: &[String]) -> bool {
    let Some(user) = get_user_by_uid(uid) else { return false };
    let gids: Vec<u32> = groups.iter().filter_map(|name| Some(get_group_by_name(name)?.gid())).collect();
    let of_user = get_user_groups(user.name(), user.primary_group_id()).unwrap_or_default();
    gids.contains(&user.primary_group_id()) || of_user.iter().any(|group| gids.contains(&group.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_root_and_those_that_were_named_own_the_helper() {
        let owners = Owners { uids: vec![501], ..Owners::default() };
        assert!(owners.include(0).await);
        assert!(owners.include(501).await);
        assert!(!owners.include(502).await);
    }

    #[tokio::test]
    async fn members_of_a_group_own_it_and_a_group_that_does_not_exist_has_none() {
        let of = |group: &str| Owners { groups: vec![group.into()], ..Owners::default() };
        let daemon = 1; // its own group on every Unix
        let name = get_user_by_uid(daemon).map(|user| user.name().to_string_lossy().into_owned());
        assert_eq!(name.as_deref(), Some("daemon"));
        assert!(of("daemon").include(daemon).await);
        assert!(!of("no-such-group").include(daemon).await);
        assert!(!of("daemon").include(4_000_000_000).await, "a user that does not exist");
    }

    #[tokio::test]
    async fn nobody_sits_at_a_machine_without_a_session() {
        let owners = Owners { local: true, ..Owners::default() };
        assert!(!owners.include(4_000_000_000).await);
    }
}
