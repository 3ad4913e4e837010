//! The package of tiny programs: another reader opens it, and names whatever is broken in it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]

#[path = "../src/sample.rs"]
mod sample;

use std::fs;
use std::path::Path;

use culvert_packaging::bundle::{self, Contents, lay_out};
use culvert_packaging::names::{CLI_PATH, CLI_PROGRAM, DAEMON_PATH, HELPER_PATH, HELPER_PROGRAM};
use culvert_packaging::package::{self, Parts};
use culvert_packaging::tree::{Entry, Kind};
use culvert_packaging::universal;
use culvert_packaging::verify::{Expected, verify};
use tempfile::TempDir;

const VERSION: &str = "1.2.3";
const EPOCH: u32 = 1_790_000_000;

/// An `__info_plist`.
fn info(identifier: &str, version: &str) -> Vec<u8> {
    format!(
        "<?xml version=\"1.0\"?><plist version=\"1.0\"><dict><key>CFBundleIdentifier</key><string>{identifier}</string>\
         <key>CFBundleVersion</key><string>{version}</string>\
         <key>CFBundleShortVersionString</key><string>{version}</string></dict></plist>"
    )
    .into_bytes()
}

fn universal(identifier: &str, version: &str) -> Vec<u8> {
    let info = info(identifier, version);
    let halves = ["arm64", "x86_64"].map(|processor| sample::program_with(processor, &["_close"], &info));
    universal::join(&halves).unwrap()
}

/// Programs, scripts and texts in a folder, laid out.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: TempDir::new().unwrap() };
        for folder in ["programs", "source/imports", "source/scripts", "source/resources"] {
            fs::create_dir_all(bench.path(folder)).unwrap();
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("macos");
        for file in ["net.culvert.daemon.plist", "net.culvert.helper.plist", "resources/welcome.html"] {
            fs::copy(source.join(file), bench.path("source").join(file)).unwrap();
        }
        for (program, identifier) in [(HELPER_PROGRAM, "net.culvert.helper"), (CLI_PROGRAM, "net.culvert.ctl")] {
            fs::write(bench.path("programs").join(program), universal(identifier, VERSION)).unwrap();
            let list = bench.path("source/imports").join(format!("{program}.txt"));
            fs::write(list, "/usr/lib/libSystem.B.dylib _close\n").unwrap();
        }
        for script in ["preinstall", "postinstall"] {
            fs::write(bench.path("source/scripts").join(script), "#!/bin/sh\nexit 0\n").unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn lay_out(&self) -> anyhow::Result<Contents> {
        let (programs, source) = (self.path("programs"), self.path("source"));
        let documents = Some(self.path("documents")).filter(|documents| documents.exists());
        lay_out(
            &bundle::Inputs { programs: &programs, source: &source, documents: documents.as_deref(), version: VERSION },
            &self.path("root"),
        )
    }

    fn parts(&self) -> anyhow::Result<Parts> {
        let (scripts, resources) = (self.path("source/scripts"), self.path("source/resources"));
        Parts::read(&package::Inputs {
            root: &self.path("root"),
            scripts: &scripts,
            resources: &resources,
            version: VERSION,
        })
    }

    fn laid_out() -> Self {
        let bench = Self::new();
        bench.lay_out().unwrap();
        bench
    }

    /// What the reader says of a package with these bytes.
    fn verify(&self, bytes: &[u8]) -> Result<String, String> {
        let file = self.path(&package::name(&self.path("root"), VERSION));
        fs::write(&file, bytes).unwrap();
        verify(&file, &Expected { version: VERSION }).map_err(|error| format!("{error:#}"))
    }
}

fn entry<'a>(entries: &'a mut [Entry], path: &str) -> &'a mut Entry {
    entries.iter_mut().find(|entry| entry.path == path).unwrap()
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    *bytes = text.replace(from, to).into_bytes();
}

/// The sample's arm64 programs have no signature, which real ones get from the linker.
fn but_for_the_missing_signature(verdict: Result<String, String>) -> Vec<String> {
    let lines = verdict.expect_err("a sample has no signature");
    let lines = lines.lines().skip(1).filter(|line| !line.contains("has no signature at all"));
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn another_reader_finds_nothing_wrong_and_the_bytes_are_the_same_each_time() {
    let bench = Bench::laid_out();
    let package = bench.parts().unwrap().pack(EPOCH).unwrap();
    assert_eq!(but_for_the_missing_signature(bench.verify(&package)), Vec::<String>::new());

    let other = Bench::laid_out();
    assert!(other.parts().unwrap().pack(EPOCH).unwrap() == package, "made elsewhere, byte by byte the same");
    assert!(other.parts().unwrap().pack(EPOCH + 1).unwrap() != package, "the time is in it");
    assert_eq!(package::name(&bench.path("root"), VERSION), "Culvert-1.2.3-helper-unsigned.pkg");
}

/// Each thing broken by itself, and a word of the line that names it.
#[test]
fn what_is_broken_is_named() {
    type Break = fn(&mut Parts);
    let cases: &[(&str, Break)] = &[
        ("mode 4755", |parts| entry(&mut parts.payload, HELPER_PATH).mode = 0o4755),
        ("mode 0775", |parts| entry(&mut parts.payload, "Library/PrivilegedHelperTools").mode = 0o775),
        ("nobody may run", |parts| entry(&mut parts.payload, HELPER_PATH).mode = 0o644),
        ("net.culvert.helper: the bill of materials says", |parts| entry(&mut parts.bill, HELPER_PATH).mode = 0o700),
        ("only in the payload", |parts| parts.bill.retain(|entry| entry.path != CLI_PATH)),
        ("only in the bill", |parts| parts.payload.retain(|entry| entry.path != CLI_PATH)),
        ("net.culvert.helper: missing", |parts| parts.payload.retain(|entry| entry.path != HELPER_PATH)),
        ("._culvert: left by Finder", |parts| {
            let kind = Kind::File(vec![]);
            parts.payload.push(Entry { path: "usr/local/bin/._culvert".into(), mode: 0o644, kind });
        }),
        ("a program that the package does not know", |parts| {
            let kind = Kind::File(sample::program("arm64", &[]));
            parts.payload.push(Entry { path: "usr/local/bin/other".into(), mode: 0o755, kind });
        }),
        ("is not in the package", |parts| {
            entry(&mut parts.payload, CLI_PATH).kind = Kind::Link("/Applications/Culvert.app/culvert".into());
        }),
        ("CFBundleVersion 1.2.2, not 1.2.3", |parts| {
            entry(&mut parts.payload, CLI_PATH).kind = Kind::File(universal("net.culvert.ctl", "1.2.2"));
        }),
        ("identifier net.culvert.other", |parts| {
            entry(&mut parts.payload, CLI_PATH).kind = Kind::File(universal("net.culvert.other", VERSION));
        }),
        ("other programs for", |parts| {
            let only = sample::program_with("arm64", &[], &info("net.culvert.ctl", VERSION));
            entry(&mut parts.payload, CLI_PATH).kind = Kind::File(only);
        }),
        ("for macOS 14.0, not 13.0", |parts| {
            let mut program = sample::program_with("arm64", &[], &info("net.culvert.ctl", VERSION));
            sample::set_minimum(&mut program, 14 << 16);
            entry(&mut parts.payload, CLI_PATH).kind = Kind::File(program);
        }),
        ("no readable __info_plist", |parts| {
            entry(&mut parts.payload, CLI_PATH).kind = Kind::File(sample::program_with("arm64", &[], b"nothing"));
        }),
        ("which is not of macOS", |parts| {
            let Kind::File(program) = &mut entry(&mut parts.payload, CLI_PATH).kind else { unreachable!() };
            while let Some(at) = program.windows(9).position(|part| part == b"/usr/lib/") {
                program[at..at + 9].copy_from_slice(b"/opt/lib/");
            }
        }),
        ("has the label", |parts| {
            let Kind::File(file) = &mut entry(&mut parts.payload, DAEMON_PATH).kind else { unreachable!() };
            replace(file, "net.culvert.daemon", "net.culvert.demon");
        }),
        ("starts /Library/PrivilegedHelperTools/other", |parts| {
            let Kind::File(file) = &mut entry(&mut parts.payload, DAEMON_PATH).kind else { unreachable!() };
            replace(file, "/Library/PrivilegedHelperTools/net.culvert.helper", "/Library/PrivilegedHelperTools/other");
        }),
        ("missing or unreadable", |parts| entry(&mut parts.payload, DAEMON_PATH).kind = Kind::File(b"<plist".to_vec())),
        ("Scripts: postinstall cannot be run", |parts| entry(&mut parts.scripts, "postinstall").mode = 0o644),
        ("PackageInfo names ./preinstall", |parts| parts.scripts.retain(|entry| entry.path != "preinstall")),
        ("in no line of PackageInfo", |parts| {
            replace(&mut parts.information, "<preinstall file=\"./preinstall\"/>", "");
        }),
        ("shows dialogs", |parts| {
            entry(&mut parts.scripts, "preinstall").kind = Kind::File(b"#!/bin/sh\nosascript -e beep\n".to_vec());
        }),
        ("Scripts: version says 1.2.2", |parts| {
            entry(&mut parts.scripts, "version").kind = Kind::File(b"1.2.2\n".to_vec());
        }),
        ("PackageInfo: version is 1.2.2", |parts| replace(&mut parts.information, "\"1.2.3\"", "\"1.2.2\"")),
        ("PackageInfo: auth", |parts| replace(&mut parts.information, "auth=\"root\"", "auth=\"none\"")),
        ("PackageInfo: identifier", |parts| replace(&mut parts.information, "net.culvert.pkg", "net.culvert.package")),
        ("another number of files", |parts| replace(&mut parts.information, "numberOfFiles=\"", "numberOfFiles=\"1")),
        ("Distribution: for macOS 12.0", |parts| replace(&mut parts.distribution, "min=\"13.0\"", "min=\"12.0\"")),
        ("Distribution: version 1.2.2", |parts| replace(&mut parts.distribution, "\"1.2.3\"", "\"1.2.2\"")),
        ("Distribution: for ['arm64']", |parts| replace(&mut parts.distribution, "x86_64,arm64", "arm64")),
        ("no license text", |parts| parts.resources.retain(|(name, _)| name != "license.txt")),
        ("#other.pkg is not in the package", |parts| {
            replace(&mut parts.distribution, "#Culvert-component.pkg", "#other.pkg");
        }),
        ("Distribution: unclosed token", |parts| parts.distribution.truncate(200)),
    ];
    let bench = Bench::laid_out();
    for (word, break_it) in cases {
        let mut parts = bench.parts().unwrap();
        break_it(&mut parts);
        let wrong = but_for_the_missing_signature(bench.verify(&parts.pack(EPOCH).unwrap()));
        assert!(wrong.iter().any(|line| line.contains(word)), "{word}: {wrong:#?}");
    }
}

#[test]
fn damage_to_the_file_is_named() {
    let bench = Bench::laid_out();
    let good = bench.parts().unwrap().pack(EPOCH).unwrap();
    let broken = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bench.verify(&bytes).unwrap_err()
    };
    assert!(broken(0).contains("no xar file"));
    assert!(broken(40).contains("table of contents"));
    assert!(broken(good.len() - 1).contains("damaged (checksum)"));
    assert!(bench.verify(&good[..good.len() - 10]).unwrap_err().contains("cut off"));
    assert!(bench.verify(b"").unwrap_err().contains("no xar file"));

    let file = bench.path("Culvert-1.2.3.pkg");
    fs::write(&file, &good).unwrap();
    let wrong = format!("{:#}", verify(&file, &Expected { version: VERSION }).unwrap_err());
    assert!(wrong.contains("nobody has signed it") && wrong.contains("no app in it"), "{wrong}");
    let wrong = verify(&bench.path("missing-helper-unsigned.pkg"), &Expected { version: VERSION }).unwrap_err();
    assert!(format!("{wrong:#}").contains("No such file"), "{wrong:#}");
}

#[test]
fn what_is_missing_stops_the_layout_and_the_package() {
    let says = |bench: &Bench, word: &str| {
        let error = format!("{:#}", bench.lay_out().map(|_| ()).and_then(|()| bench.parts().map(|_| ())).unwrap_err());
        assert!(error.contains(word), "{word}: {error}");
    };
    for file in [
        "programs/culvert-helper",
        "programs/culvert",
        "source/imports/culvert.txt",
        "source/net.culvert.daemon.plist",
        "source/scripts/preinstall",
        "source/resources/welcome.html",
    ] {
        let bench = Bench::new();
        fs::remove_file(bench.path(file)).unwrap();
        says(&bench, file.rsplit('/').next().unwrap());
    }
    let bench = Bench::new();
    fs::write(bench.path("source/imports/culvert.txt"), "").unwrap();
    says(&bench, "libSystem.B.dylib _close");
    let bench = Bench::new();
    fs::write(bench.path("programs/culvert"), sample::program("arm64", &["_close"])).unwrap();
    says(&bench, "is for arm64, another program for x86_64, arm64");
    let bench = Bench::new();
    fs::create_dir_all(bench.path("root/home")).unwrap();
    says(&bench, "not of a package");
    assert!(bench.path("root/home").exists(), "what is not ours stays");
}

#[test]
fn the_commands_documents_go_where_macos_looks() {
    let bench = Bench::new();
    for file in ["man/culvert.1", "bash/culvert", "zsh/_culvert", "fish/culvert.fish"] {
        let file = bench.path("documents").join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "text").unwrap();
    }
    bench.lay_out().unwrap();
    let mut parts = bench.parts().unwrap();
    for path in ["man/man1/culvert.1", "zsh/site-functions/_culvert", "fish/vendor_completions.d/culvert.fish"] {
        assert_eq!(entry(&mut parts.payload, &format!("usr/local/share/{path}")).mode, 0o644);
    }
    assert_eq!(but_for_the_missing_signature(bench.verify(&parts.pack(EPOCH).unwrap())), Vec::<String>::new());
    fs::remove_dir_all(bench.path("documents/zsh")).unwrap();
    assert!(format!("{:#}", bench.lay_out().unwrap_err()).contains("documents/zsh"));
}

#[test]
fn an_app_gets_its_bundle_and_the_command_a_link_into_it() {
    let bench = Bench::new();
    fs::write(bench.path("programs/Culvert"), universal("net.culvert.app", VERSION)).unwrap();
    fs::write(bench.path("source/imports/Culvert.txt"), "/usr/lib/libSystem.B.dylib _close\n").unwrap();
    assert!(bench.lay_out().unwrap_err().to_string().contains("icon.icns"));
    fs::write(bench.path("source/icon.icns"), "icns").unwrap();
    assert_eq!(bench.lay_out().unwrap(), Contents::App);
    assert_eq!(package::name(&bench.path("root"), VERSION), "Culvert-1.2.3-unsigned.pkg");
    let mut parts = bench.parts().unwrap();
    let package = bench.parts().unwrap().pack(EPOCH).unwrap();
    assert_eq!(but_for_the_missing_signature(bench.verify(&package)), Vec::<String>::new());

    let info = entry(&mut parts.payload, "Applications/Culvert.app/Contents/Info.plist");
    let Kind::File(file) = &mut info.kind else { unreachable!() };
    replace(file, "1.2.3", "1.2.2");
    let wrong = but_for_the_missing_signature(bench.verify(&parts.pack(EPOCH).unwrap()));
    assert!(wrong.iter().any(|line| line.contains("Culvert.app: CFBundleVersion is 1.2.2")), "{wrong:?}");
}
