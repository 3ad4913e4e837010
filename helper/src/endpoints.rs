//! Where a gateway, or any of several that share their devices, can be reached: what the profile says, kept up to date
//! by what each welcome says. Pure.

use culvert_tunnel::invitation::{MAX_ENDPOINTS, is_endpoint};

/// The profile's endpoints after a welcome that told `told`. Those that are still told keep their places, so that a
/// device goes back to the gateway that it was enrolled with; new ones follow. The one in use, number `in_use`, stays
/// whatever is told: it works. At most [`MAX_ENDPOINTS`].
pub fn merged(profile: &[String], told: &[String], in_use: usize) -> Vec<String> {
    if told.is_empty() {
        return profile.to_vec(); // an older gateway
    }
    let kept = profile.iter().enumerate().filter(|(place, known)| *place == in_use || told.contains(known));
    let mut merged: Vec<String> = kept.map(|(_, known)| known.clone()).collect();
    for new in told.iter().filter(|new| is_endpoint(new)) {
        if merged.len() < MAX_ENDPOINTS && !merged.contains(new) {
            merged.push(new.clone());
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_keeps_its_place_and_what_is_new_follows() {
        assert_eq!(merge("a b", "b c a", 0), "a b c");
        assert_eq!(merge("a", "b a c", 0), "a b c", "at home it says its own first");
        assert_eq!(merge("a b c", "b c a", 1), "a b c", "elsewhere too");
    }

    #[test]
    fn what_is_told_no_more_goes_unless_it_is_in_use() {
        assert_eq!(merge("a b c", "a c", 0), "a c");
        assert_eq!(merge("a b", "c", 1), "b c");
        assert_eq!(merge("a b", "", 0), "a b");
    }

    #[test]
    fn nonsense_is_not_kept_and_neither_is_more_than_a_profile_holds() {
        let told: Vec<String> = (0..20).map(|number| format!("gw{number}.example.org:443")).collect();
        assert_eq!(merged(&["a.example.org:443".into()], &told, 0).len(), MAX_ENDPOINTS);
        assert_eq!(merged(&["a.example.org:443".into()], &["no port".into()], 0), ["a.example.org:443"]);
    }

    /// Letters for endpoints.
    fn merge(profile: &str, told: &str, in_use: usize) -> String {
        let list = |text: &str| -> Vec<String> {
            text.split_whitespace().map(|letter| format!("{letter}.example.org:443")).collect()
        };
        let merged = merged(&list(profile), &list(told), in_use);
        merged.iter().map(|endpoint| &endpoint[..1]).collect::<Vec<_>>().join(" ")
    }
}
