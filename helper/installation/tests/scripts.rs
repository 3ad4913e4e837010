//! The package's scripts as Installer runs them, on a disk that looks like a Mac's: an overlay over this machine's, in
//! a mount namespace of its own, where `launchctl` and Apple's other tools are stubs that write down what they were
//! asked. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes the disk, and becomes root of it; then the scenario runs with the words of `PRELUDE`.
const DISK: &str = r#"set -e
mount -t tmpfs disk "$DIR/disk"
mkdir "$DIR"/disk/{upper,work,root}
mount -t overlay disk -o "lowerdir=/,upperdir=$DIR/disk/upper,workdir=$DIR/disk/work" "$DIR/disk/root"
mount --bind /dev "$DIR/disk/root/dev"
mkdir "$DIR/disk/root/mac"
mount --bind "$DIR/mac" "$DIR/disk/root/mac"
exec chroot "$DIR/disk/root" /bin/bash /mac/scenario
"#;

const PRELUDE: &str = r#"set -u
export PATH=/mac/stubs:/usr/bin:/bin:/usr/sbin:/sbin
mkdir -p /launchd /Library/{LaunchDaemons,PrivilegedHelperTools,"Application Support"} /Applications /var/db/receipts
job=/Library/LaunchDaemons/net.culvert.daemon.plist
# receipt IDENTIFIER VERSION
receipt() { printf '<plist version="1.0"><dict><key>PackageVersion</key><string>%s</string></dict></plist>' "$2" >"/var/db/receipts/$1.plist"; }
# payload TEXT: what Installer puts in place.
payload() {
  echo "helper $1" >/Library/PrivilegedHelperTools/net.culvert.helper
  echo "job" >$job
  mkdir -p /Applications/Culvert.app
}
# install VERSION: as Installer does it; a script that fails ends it.
install() {
  local code
  echo "$1" >/mac/scripts/version
  /mac/scripts/preinstall /tmp/Culvert.pkg / / >>/mac/said 2>&1 || { code=$?; echo "preinstall $code" >>/mac/calls; return $code; }
  payload "$1"
  /mac/scripts/postinstall /tmp/Culvert.pkg / / >>/mac/said 2>&1 || { code=$?; echo "postinstall $code" >>/mac/calls; return $code; }
  receipt net.culvert.pkg "$1"
}
is_there() { if [ -e "$1" ]; then echo "there $1"; else echo "gone $1"; fi >>/mac/calls; }
"#;

const STUBS: [(&str, &str); 7] = [
    (
        "launchctl",
        r#"case $1 in
  print) [ -e "/launchd/${2#system/}" ]; exit ;;
  bootout) rm "/launchd/${2#system/}" ;;
  bootstrap) touch "/launchd/$(basename "$3" .plist)" ;;
  asuser) shift 2; "$@" ;;
esac"#,
    ),
    (
        "plutil",
        r#"exec python3 -c 'import plistlib, sys; print(plistlib.load(open(sys.argv[2], "rb"))[sys.argv[1]])' "$2" "$6""#,
    ),
    ("stat", r#"cat /mac/console"#),
    ("sudo", r#"shift 2; "$@""#),
    ("open", ""),
    ("pkgutil", ""),
    ("xattr", "exit 1"),
];

/// What a scenario did: the calls, without questions, and what the scripts said.
struct Seen {
    calls: Vec<String>,
    said: String,
}

/// Runs a scenario on a fresh disk, with `console` as the user at the screen.
fn run(console: u32, scenario: &str) -> Seen {
    assert!(rustix_is_root(), "a disk of its own needs root");
    let dir = tempfile::tempdir().unwrap();
    let mac = dir.path().join("mac");
    fs::create_dir_all(mac.join("stubs")).unwrap();
    fs::create_dir(dir.path().join("disk")).unwrap();
    for (name, body) in STUBS {
        // Questions are not written down: they change nothing.
        let text = format!(
            "#!/bin/bash\n[ \"$1\" = print ] || [ {name} = plutil ] || [ {name} = stat ] || echo \"{name} $*\" >>/mac/calls\n{body}\n"
        );
        put(&mac.join("stubs").join(name), &text);
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/macos/scripts");
    fs::create_dir(mac.join("scripts")).unwrap();
    for name in ["preinstall", "postinstall"] {
        put(&mac.join("scripts").join(name), &fs::read_to_string(scripts.join(name)).unwrap());
    }
    fs::write(mac.join("console"), format!("{console}\n")).unwrap();
    fs::write(mac.join("scenario"), format!("{PRELUDE}{scenario}")).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", DISK])
        .env("DIR", dir.path())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert_eq!(words, "", "the scenario's own words");
    let read = |name: &str| fs::read_to_string(mac.join(name)).unwrap_or_default();
    Seen { calls: read("calls").lines().map(str::to_owned).collect(), said: read("said") }
}

fn put(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn rustix_is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

const ENABLE: &str = "launchctl enable system/net.culvert.daemon";
const BOOTSTRAP: &str = "launchctl bootstrap system /Library/LaunchDaemons/net.culvert.daemon.plist";
const BOOTOUT: &str = "launchctl bootout system/net.culvert.daemon";
const KILL: &str = "launchctl kill SIGKILL system/net.culvert.daemon";

#[test]
fn a_fresh_installation_starts_the_helper_and_opens_the_app_as_the_user_at_the_screen() {
    let seen = run(501, "install 1.2.0; echo $? >>/mac/calls");
    let open = [
        "launchctl asuser 501 sudo -u #501 open -g /Applications/Culvert.app",
        "sudo -u #501 open -g /Applications/Culvert.app",
        "open -g /Applications/Culvert.app",
    ];
    let xattr = "xattr -d com.apple.quarantine /Library/LaunchDaemons/net.culvert.daemon.plist \
                 /Library/PrivilegedHelperTools/net.culvert.helper";
    assert_eq!(seen.calls, [&[xattr, ENABLE, BOOTSTRAP][..], &open, &["0"]].concat(), "{}", seen.said);
    assert_eq!(seen.said, "");
}

#[test]
fn without_anybody_at_the_screen_no_app_is_opened() {
    for nobody in [0, 88] {
        let seen = run(nobody, "install 1.2.0; echo $? >>/mac/calls");
        assert_eq!(seen.calls.last().unwrap(), "0", "{}", seen.said);
        assert!(seen.calls.iter().any(|call| call == BOOTSTRAP));
        assert!(!seen.calls.iter().any(|call| call.starts_with("open")), "{:?}", seen.calls);
    }
}

#[test]
fn an_upgrade_never_stops_the_helper_in_an_orderly_way_since_that_would_lift_the_block() {
    let seen = run(
        0,
        r#"install 1.2.0; mkdir "/Library/Application Support/Culvert"; : >/mac/calls
install 1.10.0; echo $? >>/mac/calls; install 1.10.0; echo $? >>/mac/calls
is_there "/Library/Application Support/Culvert/job.before"; is_there /launchd/net.culvert.daemon"#,
    );
    let calls: Vec<&str> = seen.calls.iter().map(String::as_str).filter(|call| !call.starts_with("xattr")).collect();
    let once = [ENABLE, KILL, "0"];
    let end = ["gone /Library/Application Support/Culvert/job.before", "there /launchd/net.culvert.daemon"];
    assert_eq!(calls, [&once[..], &once, &end].concat(), "{}", seen.said);
}

#[test]
fn a_job_that_says_something_else_is_taken_out_and_put_in_again() {
    let seen = run(
        0,
        r#"install 1.2.0; mkdir "/Library/Application Support/Culvert"; echo "another job" >$job; : >/mac/calls
install 1.3.0; echo $? >>/mac/calls; is_there "/Library/Application Support/Culvert/job.before""#,
    );
    let calls: Vec<&str> = seen.calls.iter().map(String::as_str).filter(|call| !call.starts_with("xattr")).collect();
    let end = "gone /Library/Application Support/Culvert/job.before";
    assert_eq!(calls, [ENABLE, BOOTOUT, BOOTSTRAP, "0", end], "{}", seen.said);
}

#[test]
fn a_downgrade_is_refused_before_anything_is_changed() {
    for (installed, offered) in [("1.10.0", "1.9.9"), ("2.0.0", "1.99.99"), ("1.2.1-rc.1", "1.2.0")] {
        let scenario = format!(
            "receipt net.culvert.pkg {installed}; touch /launchd/net.culvert.daemon; mkdir /Applications/SloPN.app\n\
             install {offered}; echo $? >>/mac/calls; is_there /Applications/SloPN.app"
        );
        let seen = run(501, &scenario);
        assert_eq!(seen.calls, ["preinstall 1", "1", "there /Applications/SloPN.app"], "{}", seen.said);
        let why =
            format!("is installed, and this is {offered}. Remove it first: sudo culvert uninstall --keep-identity");
        assert!(seen.said.contains(&why), "{}", seen.said);
    }
}

#[test]
fn the_same_version_and_a_receipt_that_says_nothing_are_no_downgrade() {
    for installed in ["1.2.0", "1.2.0-rc.1", "", "unknown"] {
        let seen = run(0, &format!("receipt net.culvert.pkg '{installed}'; install 1.2.0; echo $? >>/mac/calls"));
        assert_eq!(seen.calls.last().unwrap(), "0", "{installed:?}: {}", seen.said);
    }
}

#[test]
fn a_package_without_its_version_is_refused() {
    for version in ["", "latest", "1.2"] {
        let seen = run(0, &format!("install '{version}'; echo $? >>/mac/calls"));
        assert_eq!(seen.calls, ["preinstall 1", "1"], "{version:?}: {}", seen.said);
    }
}

#[test]
fn beside_the_apps_own_helper_the_packages_starts_and_the_apps_job_is_left_to_the_app() {
    let seen = run(
        501,
        "touch /launchd/net.culvert.helper; install 1.2.0; echo $? >>/mac/calls; is_there /launchd/net.culvert.helper",
    );
    assert!(seen.calls.iter().any(|call| call == BOOTSTRAP), "{:?}", seen.calls);
    assert_eq!(seen.calls.last().unwrap(), "there /launchd/net.culvert.helper");
    assert!(!seen.calls.iter().any(|call| call.contains("net.culvert.helper") && call.starts_with("launchctl")));
    assert!(seen.said.contains("ends when the app starts next"), "{}", seen.said);
}

#[test]
fn the_predecessor_is_stopped_and_removed_and_a_second_time_there_is_nothing_to_do() {
    let seen = run(
        0,
        r#"touch /launchd/com.webdunesurfer.slopn.helper /var/log/slopn-helper.log /Library/PrivilegedHelperTools/slopn-helper
touch /Library/LaunchDaemons/com.webdunesurfer.slopn.helper.plist; receipt com.webdunesurfer.slopn 0.9.9
mkdir "/Library/Application Support/SloPN" /Applications/SloPN.app; echo secret >"/Library/Application Support/SloPN/ipc.secret"
install 1.2.0
for path in /Library/LaunchDaemons/com.webdunesurfer.slopn.helper.plist /Library/PrivilegedHelperTools/slopn-helper \
  "/Library/Application Support/SloPN" /var/log/slopn-helper.log /Applications/SloPN.app; do is_there "$path"; done
rm /var/db/receipts/com.webdunesurfer.slopn.plist; : >/mac/again; install 1.2.0; echo $? >>/mac/calls"#,
    );
    assert_eq!(seen.calls[0], "launchctl bootout system/com.webdunesurfer.slopn.helper");
    assert_eq!(seen.calls[1], "pkgutil --volume / --forget com.webdunesurfer.slopn");
    assert_eq!(seen.calls.iter().filter(|call| call.starts_with("gone ")).count(), 5, "{:?}", seen.calls);
    assert_eq!(seen.calls.iter().filter(|call| call.contains("slopn")).count(), 2 + 3, "once: {:?}", seen.calls);
    assert_eq!(seen.said.matches("which SloPN left").count(), 5, "{}", seen.said);
    assert_eq!(seen.calls.last().unwrap(), "0");
}

#[test]
fn nothing_is_started_that_others_than_root_could_change() {
    let broken = [
        ("chmod 777 /Library/PrivilegedHelperTools", "may write /Library/PrivilegedHelperTools"),
        ("chown 501 /Library/LaunchDaemons", "may write /Library/LaunchDaemons"),
        ("mkdir /Applications/Culvert.localized", "Remove that folder"),
    ];
    for (how, said) in broken {
        let seen = run(501, &format!("{how}; install 1.2.0; echo $? >>/mac/calls"));
        let calls: Vec<&String> = seen.calls.iter().filter(|call| !call.starts_with("xattr")).collect();
        assert_eq!(calls, ["postinstall 1", "1"], "{how}: {}", seen.said);
        assert!(seen.said.contains(said), "{how}: {}", seen.said);
    }
    let link = "payload() { echo job >$job; ln -s /tmp/evil /Library/PrivilegedHelperTools/net.culvert.helper; }";
    let seen = run(501, &format!("touch /tmp/evil\n{link}\ninstall 1.2.0; echo $? >>/mac/calls"));
    assert_eq!(seen.calls, ["postinstall 1", "1"], "{}", seen.said);
}

#[test]
fn files_that_came_with_wrong_rights_get_the_right_ones() {
    let own = "payload() { echo x >$job; echo x >/Library/PrivilegedHelperTools/net.culvert.helper
  chown 501:20 $job /Library/PrivilegedHelperTools/net.culvert.helper; chmod 666 $job /Library/PrivilegedHelperTools/net.culvert.helper; }";
    let look = r#"for path in $job /Library/PrivilegedHelperTools/net.culvert.helper; do /usr/bin/stat -c '%u:%g %a' $path >>/mac/calls; done"#;
    let seen = run(0, &format!("{own}\ninstall 1.2.0\n{look}"));
    assert_eq!(seen.calls[seen.calls.len() - 2..], ["0:0 644", "0:0 755"], "{}", seen.said);
}

#[test]
fn on_another_disk_nothing_is_started_or_stopped() {
    let seen = run(
        501,
        r#"touch /launchd/net.culvert.daemon /launchd/com.webdunesurfer.slopn.helper; disk=/Volumes/Other
mkdir -p $disk/Library/{LaunchDaemons,PrivilegedHelperTools} $disk/Applications/SloPN.app $disk/var/db/receipts
echo 1.2.0 >/mac/scripts/version
/mac/scripts/preinstall /tmp/Culvert.pkg $disk $disk >>/mac/said; echo $? >>/mac/calls
echo job >$disk$job; echo helper >$disk/Library/PrivilegedHelperTools/net.culvert.helper
/mac/scripts/postinstall /tmp/Culvert.pkg $disk $disk >>/mac/said; echo $? >>/mac/calls
is_there $disk/Applications/SloPN.app"#,
    );
    let calls: Vec<&String> = seen.calls.iter().filter(|call| !call.starts_with("xattr")).collect();
    assert_eq!(calls, ["0", "0", "gone /Volumes/Other/Applications/SloPN.app"], "{}", seen.said);
}
