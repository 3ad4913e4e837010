//! What is left to do so that exactly one helper, of the right version, is active. Pure: what is there goes in, one step
//! comes out; the caller does it, looks again and asks again, until the answer is a rest ([`Step::is_rest`]).
//!
//! The package wins over the bundle: it runs from boot, an MDM can manage it, and no user can replace its program. The
//! app never writes into the package's places (only an installer does), and no script registers or removes the
//! bundle's job (only the app can, as SMAppService has it).

use std::fmt;

/// What SMAppService, or its look at a plist in `/Library`, says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Never registered, or not known: what a fresh machine says of a valid job, too.
    Absent,
    /// Registered, and an administrator has not allowed it yet, or has switched it off.
    AwaitsApproval,
    /// May run.
    Enabled,
}

/// A helper that answers, by its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody listens, seen several times over some seconds.
    Silent,
    /// Somebody listens and does not answer in a way that says anything.
    Unclear,
    /// This version.
    Version(Version),
}

/// Three numbers, as releases have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// `1.2.3`; what stands behind `-` or `+` does not count.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['-', '+']).next()?.split('.').map(|number| number.parse().ok());
        let version = Self(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What the app sees when it starts, when it is asked to, and every few seconds while it waits for an approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// This app's version; its bundle has a helper of the same.
    pub app: Version,
    /// The app is in `/Applications`, neither on a disk image nor moved aside by macOS (translocation).
    pub in_place: bool,
    /// The package's job.
    pub package: Job,
    /// The bundle's job.
    pub bundle: Job,
    /// Who answers on the package's socket.
    pub package_helper: Answer,
    /// Who answers on the bundle's socket.
    pub bundle_helper: Answer,
    /// A connection is up or wanted, which replacing the helper would interrupt.
    pub connected: bool,
    /// The user has agreed to that interruption.
    pub may_interrupt: bool,
    /// The predecessor's job or files are there.
    pub predecessor: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: this helper is the one. Where to reach it.
    Use(Way),
    /// Say that the app has to be moved to `/Applications` first.
    MoveApp,
    /// Explain what macOS will ask, then register the bundle's job.
    Register,
    /// Wait until an administrator allows the job in System Settings. Never register again meanwhile.
    AwaitApproval(Way),
    /// Unregister the bundle's job: the package's has taken its place. Its helper undoes everything as it ends.
    UnregisterBundle,
    /// Unregister the bundle's job, wait until it is gone, and register it on a later turn of the main queue: a new
    /// program is in the bundle, and launchd goes on with the old one.
    ReplaceBundle,
    /// Ask first whether the connection may be interrupted.
    AskToInterrupt,
    /// Say that the package has to be installed again, or a newer one: its helper is older, or does not start.
    InstallPackage,
    /// Say that a newer app belongs to the helper that is there, and change nothing: nothing is ever downgraded.
    UpdateApp(Version),
    /// Say that the predecessor has to go first, which the package does.
    RemovePredecessor,
    /// Nothing for now: somebody listens and it is not clear who. Look again later, and say so.
    LookAgain(Way),
}

/// By which of the two a helper is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The package's LaunchDaemon.
    Package,
    /// SMAppService's job in the app.
    Bundle,
}

impl Step {
    /// True when nothing more can be done without somebody else.
    pub fn is_rest(self) -> bool {
        !matches!(self, Self::Register | Self::UnregisterBundle | Self::ReplaceBundle)
    }
}

/// The next step.
pub fn reconcile(seen: &Observed) -> Step {
    if seen.package != Job::Absent {
        return beside_package(seen);
    }
    // The predecessor's helper holds the same routes; only the package's script, as root, can remove it.
    if seen.predecessor {
        return Step::RemovePredecessor;
    }
    if !seen.in_place {
        return Step::MoveApp;
    }
    match seen.bundle {
        Job::Absent => Step::Register,
        Job::AwaitsApproval => Step::AwaitApproval(Way::Bundle),
        Job::Enabled => match seen.bundle_helper {
            Answer::Unclear => Step::LookAgain(Way::Bundle),
            Answer::Version(version) if version == seen.app => Step::Use(Way::Bundle),
            Answer::Version(version) if version > seen.app => Step::UpdateApp(version),
            Answer::Version(_) if seen.connected && !seen.may_interrupt => Step::AskToInterrupt,
            Answer::Version(_) | Answer::Silent => Step::ReplaceBundle,
        },
    }
}

fn beside_package(seen: &Observed) -> Step {
    if seen.bundle != Job::Absent {
        let holds = matches!(seen.bundle_helper, Answer::Version(_)) && seen.connected;
        return if holds && !seen.may_interrupt { Step::AskToInterrupt } else { Step::UnregisterBundle };
    }
    match (seen.package, seen.package_helper) {
        (Job::AwaitsApproval, Answer::Silent) => Step::AwaitApproval(Way::Package),
        (_, Answer::Unclear) => Step::LookAgain(Way::Package),
        (_, Answer::Silent) => Step::InstallPackage,
        (_, Answer::Version(version)) if version > seen.app => Step::UpdateApp(version),
        (_, Answer::Version(version)) if version < seen.app => Step::InstallPackage,
        (_, Answer::Version(_)) => Step::Use(Way::Package),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Answer = Answer::Version(Version(1, 0, 0));
    const SAME: Answer = Answer::Version(Version(1, 2, 0));
    const NEW: Answer = Answer::Version(Version(2, 0, 0));
    const JOBS: [Job; 3] = [Job::Absent, Job::AwaitsApproval, Job::Enabled];
    const ANSWERS: [Answer; 5] = [Answer::Silent, Answer::Unclear, OLD, SAME, NEW];

    fn fresh() -> Observed {
        Observed {
            app: Version(1, 2, 0),
            in_place: true,
            package: Job::Absent,
            bundle: Job::Absent,
            package_helper: Answer::Silent,
            bundle_helper: Answer::Silent,
            connected: false,
            may_interrupt: false,
            predecessor: false,
        }
    }

    /// Every state that can be seen.
    fn all() -> Vec<Observed> {
        let mut all = Vec::new();
        for bits in 0..16_u8 {
            let is = |bit: u8| bits & 1 << bit != 0;
            for (package, bundle) in JOBS.into_iter().flat_map(|a| JOBS.map(|b| (a, b))) {
                for (package_helper, bundle_helper) in ANSWERS.into_iter().flat_map(|a| ANSWERS.map(|b| (a, b))) {
                    all.push(Observed {
                        in_place: is(0),
                        connected: is(1),
                        may_interrupt: is(2),
                        predecessor: is(3),
                        package,
                        bundle,
                        package_helper,
                        bundle_helper,
                        ..fresh()
                    });
                }
            }
        }
        all
    }

    #[test]
    fn the_app_alone() {
        let of = |bundle, bundle_helper| reconcile(&Observed { bundle, bundle_helper, ..fresh() });
        let table = [
            (Job::Absent, [Step::Register; 5]),
            (Job::AwaitsApproval, [Step::AwaitApproval(Way::Bundle); 5]),
            (
                Job::Enabled,
                [
                    Step::ReplaceBundle,
                    Step::LookAgain(Way::Bundle),
                    Step::ReplaceBundle,
                    Step::Use(Way::Bundle),
                    Step::UpdateApp(Version(2, 0, 0)),
                ],
            ),
        ];
        for (job, steps) in table {
            assert_eq!(ANSWERS.map(|answer| of(job, answer)), steps, "{job:?} with {ANSWERS:?}");
        }
    }

    #[test]
    fn the_package_alone() {
        let of = |package, package_helper| reconcile(&Observed { package, package_helper, ..fresh() });
        let answers = [
            Step::LookAgain(Way::Package),
            Step::InstallPackage,
            Step::Use(Way::Package),
            Step::UpdateApp(Version(2, 0, 0)),
        ];
        assert_eq!(of(Job::AwaitsApproval, Answer::Silent), Step::AwaitApproval(Way::Package));
        assert_eq!(of(Job::Enabled, Answer::Silent), Step::InstallPackage);
        for job in [Job::AwaitsApproval, Job::Enabled] {
            assert_eq!([Answer::Unclear, OLD, SAME, NEW].map(|answer| of(job, answer)), answers, "{job:?}");
        }
    }

    #[test]
    fn the_package_takes_the_bundles_place_and_asks_before_it_interrupts() {
        for bundle in [Job::AwaitsApproval, Job::Enabled] {
            let both = Observed { package: Job::Enabled, bundle, bundle_helper: SAME, ..fresh() };
            assert_eq!(reconcile(&both), Step::UnregisterBundle);
            let connected = Observed { connected: true, ..both };
            assert_eq!(reconcile(&connected), Step::AskToInterrupt);
            assert_eq!(reconcile(&Observed { may_interrupt: true, ..connected }), Step::UnregisterBundle);
            let by_package = Observed { bundle_helper: Answer::Silent, package_helper: SAME, ..connected };
            assert_eq!(reconcile(&by_package), Step::UnregisterBundle, "the connection is not the bundle's");
        }
    }

    #[test]
    fn an_upgrade_asks_before_it_interrupts() {
        let old = Observed { bundle: Job::Enabled, bundle_helper: OLD, connected: true, ..fresh() };
        assert_eq!(reconcile(&old), Step::AskToInterrupt);
        assert_eq!(reconcile(&Observed { may_interrupt: true, ..old }), Step::ReplaceBundle);
        assert_eq!(reconcile(&Observed { bundle_helper: SAME, ..old }), Step::Use(Way::Bundle));
    }

    #[test]
    fn an_app_that_is_not_in_place_registers_nothing() {
        for bundle in JOBS {
            assert_eq!(reconcile(&Observed { in_place: false, bundle, ..fresh() }), Step::MoveApp);
        }
        let package = Observed { in_place: false, package: Job::Enabled, package_helper: SAME, ..fresh() };
        assert_eq!(reconcile(&package), Step::Use(Way::Package), "the package's helper is where it belongs");
    }

    #[test]
    fn whatever_is_seen_at_most_one_helper_is_used_and_none_is_downgraded() {
        let all = all();
        assert_eq!(all.len(), 16 * 9 * 25);
        for seen in all {
            let step = reconcile(&seen);
            match step {
                Step::Use(Way::Package) => {
                    assert!(seen.package != Job::Absent && seen.bundle == Job::Absent, "{seen:?}");
                    assert_eq!(seen.package_helper, SAME, "{seen:?}");
                }
                Step::Use(Way::Bundle) => {
                    assert!(seen.package == Job::Absent && seen.bundle == Job::Enabled, "{seen:?}");
                    assert_eq!(seen.bundle_helper, SAME, "{seen:?}");
                }
                Step::Register | Step::ReplaceBundle => {
                    assert!(seen.package == Job::Absent && seen.in_place && !seen.predecessor, "{seen:?}");
                    assert!(step == Step::Register || seen.bundle_helper != NEW, "a downgrade: {seen:?}");
                }
                Step::UnregisterBundle => {
                    assert!(seen.package != Job::Absent && seen.bundle != Job::Absent, "{seen:?}");
                }
                _ => assert!(step.is_rest()),
            }
            let interrupts = matches!(step, Step::ReplaceBundle | Step::UnregisterBundle);
            let holds = matches!(seen.bundle_helper, Answer::Version(_)) && seen.bundle != Job::Absent;
            if interrupts && holds && seen.connected {
                assert!(seen.may_interrupt, "interrupted without being asked: {seen:?}");
            }
        }
    }

    #[test]
    fn following_the_steps_comes_to_a_rest() {
        for mut seen in all() {
            let mut steps = 0;
            loop {
                let step = reconcile(&seen);
                if step.is_rest() {
                    break;
                }
                // What macOS makes of it, where it goes well.
                match step {
                    Step::UnregisterBundle => (seen.bundle, seen.bundle_helper) = (Job::Absent, Answer::Silent),
                    Step::Register => seen.bundle = Job::AwaitsApproval,
                    Step::ReplaceBundle => seen.bundle_helper = SAME,
                    _ => {}
                }
                steps += 1;
                assert!(steps < 4, "{seen:?}");
            }
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(Version::parse("1.10.0") > Version::parse("1.9.9"));
        assert_eq!(Version::parse("1.2.3-rc.1+5"), Some(Version(1, 2, 3)));
        for wrong in ["", "1", "1.2", "1.2.3.4", "1.2.x", "v1.2.3"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }
}
