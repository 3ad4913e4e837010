//! Lays out what is installed, as below the root of the disk: helper, command, launchd's file, and Culvert.app when
//! there is an app.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, ensure};
use plist::{Dictionary, Value};

use crate::names::{
    APP_IDENTIFIER, APP_PATH, APP_PROGRAM, BUNDLED_LABEL, CLI_PATH, CLI_PROGRAM, DAEMON_LABEL, DAEMON_PATH,
    HELPER_PATH, HELPER_PROGRAM, MINIMUM_MACOS,
};
use crate::{imports, universal};

/// What is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Helper and command alone.
    Helper,
    /// The app, too.
    App,
}

/// Where things come from.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The universal programs: `culvert-helper`, `culvert`, and `Culvert` when there is an app.
    pub programs: &'a Path,
    /// `packaging/macos`: launchd's files, and `imports/` with a list for each program.
    pub source: &'a Path,
    /// What the command says of itself: `man/*.1`, `bash/culvert`, `zsh/_culvert`, `fish/culvert.fish`.
    pub documents: Option<&'a Path>,
    /// As in Cargo.toml.
    pub version: &'a str,
}

/// Where each folder of documents goes. macOS's man(1) and zsh look there by themselves.
const DOCUMENTS: [(&str, &str); 4] = [
    ("man", "usr/local/share/man/man1"),
    ("bash", "usr/local/share/bash-completion/completions"),
    ("zsh", "usr/local/share/zsh/site-functions"),
    ("fish", "usr/local/share/fish/vendor_completions.d"),
];

/// Makes `root`, which must not be there or be one that this made.
///
/// # Errors
/// A missing program or launchd file, a program that needs what its list has not, a wrong launchd file.
pub fn lay_out(inputs: &Inputs<'_>, root: &Path) -> anyhow::Result<Contents> {
    let contents = if inputs.programs.join(APP_PROGRAM).exists() { Contents::App } else { Contents::Helper };
    let helper = program(inputs, HELPER_PROGRAM)?;
    let cli = program(inputs, CLI_PROGRAM)?;
    let daemon = launchd_file(inputs.source, DAEMON_LABEL)?;
    check_daemon(&daemon).with_context(|| format!("{DAEMON_LABEL}.plist"))?;

    clear(root)?;
    put(root, HELPER_PATH, &helper, 0o755)?;
    put(root, DAEMON_PATH, &xml(&daemon)?, 0o644)?;
    if let Some(documents) = inputs.documents {
        put_documents(documents, root)?;
    }
    if contents == Contents::Helper {
        put(root, CLI_PATH, &cli, 0o755)?;
        return Ok(contents);
    }
    let app = program(inputs, APP_PROGRAM)?;
    let bundled = launchd_file(inputs.source, BUNDLED_LABEL)?;
    check_bundled(&bundled).with_context(|| format!("{BUNDLED_LABEL}.plist"))?;
    let inside = |path: &str| format!("{APP_PATH}/Contents/{path}");
    put(root, &inside("Info.plist"), &xml(&app_info(inputs.version))?, 0o644)?;
    put(root, &inside("PkgInfo"), b"APPL????", 0o644)?;
    put(root, &inside(&format!("MacOS/{APP_PROGRAM}")), &app, 0o755)?;
    put(root, &inside(&format!("MacOS/{HELPER_PROGRAM}")), &helper, 0o755)?;
    put(root, &inside(&format!("MacOS/{CLI_PROGRAM}")), &cli, 0o755)?;
    put(root, &inside(&format!("Library/LaunchDaemons/{BUNDLED_LABEL}.plist")), &xml(&bundled)?, 0o644)?;
    let icons = inputs.source.join("icon.icns");
    put(root, &inside("Resources/icon.icns"), &fs::read(&icons).with_context(|| icons.display().to_string())?, 0o644)?;
    let link = root.join(CLI_PATH);
    fs::create_dir_all(link.parent().context("a path without a folder")?)?;
    symlink(format!("/{}", inside(&format!("MacOS/{CLI_PROGRAM}"))), link)?;
    Ok(contents)
}

fn put_documents(documents: &Path, root: &Path) -> anyhow::Result<()> {
    for (from, to) in DOCUMENTS {
        let folder = documents.join(from);
        for file in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_str().with_context(|| format!("{}: not UTF-8", file.path().display()))?;
            put(root, &format!("{to}/{name}"), &fs::read(file.path())?, 0o644)?;
        }
    }
    Ok(())
}

/// One program, checked.
fn program(inputs: &Inputs<'_>, name: &str) -> anyhow::Result<Vec<u8>> {
    let file = inputs.programs.join(name);
    let bytes = fs::read(&file).with_context(|| format!("{}. Build it first", file.display()))?;
    let list = inputs.source.join("imports").join(format!("{name}.txt"));
    let text = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    imports::check(name, &bytes, &imports::parse(&text).with_context(|| list.display().to_string())?)?;
    // Joined from what is universal or not: refuses what is no program for a Mac.
    universal::slices(&bytes).with_context(|| name.to_owned())?;
    Ok(bytes)
}

fn launchd_file(source: &Path, label: &str) -> anyhow::Result<Dictionary> {
    let file = source.join(format!("{label}.plist"));
    let value = Value::from_file(&file).with_context(|| file.display().to_string())?;
    let file = value.into_dictionary().context("it is not a dictionary")?;
    let found = file.get("Label").and_then(Value::as_string);
    ensure!(found == Some(label), "{label}.plist has the label {found:?}");
    Ok(file)
}

/// The helper where root alone may write.
fn check_daemon(file: &Dictionary) -> anyhow::Result<()> {
    let arguments = file.get("ProgramArguments").and_then(Value::as_array).context("it has no ProgramArguments")?;
    let program = arguments.first().and_then(Value::as_string);
    let expected = format!("/{HELPER_PATH}");
    ensure!(program == Some(expected.as_str()), "it starts {program:?}, not {expected}");
    ensure!(!file.contains_key("BundleProgram"), "BundleProgram is for the app's file");
    Ok(())
}

/// A path within the bundle; an absolute one would be taken instead.
fn check_bundled(file: &Dictionary) -> anyhow::Result<()> {
    let expected = format!("Contents/MacOS/{HELPER_PROGRAM}");
    let program = file.get("BundleProgram").and_then(Value::as_string);
    ensure!(program == Some(expected.as_str()), "its BundleProgram is {program:?}, not {expected}");
    ensure!(!file.contains_key("Program"), "Program would be taken instead of BundleProgram");
    Ok(())
}

fn app_info(version: &str) -> Dictionary {
    let mut info = Dictionary::new();
    let texts = [
        ("CFBundleDevelopmentRegion", "en"),
        ("CFBundleDisplayName", "Culvert"),
        ("CFBundleExecutable", APP_PROGRAM),
        ("CFBundleIconFile", "icon.icns"),
        ("CFBundleIdentifier", APP_IDENTIFIER),
        ("CFBundleInfoDictionaryVersion", "6.0"),
        ("CFBundleName", "Culvert"),
        ("CFBundlePackageType", "APPL"),
        ("CFBundleShortVersionString", version),
        ("CFBundleVersion", version),
        ("LSMinimumSystemVersion", MINIMUM_MACOS),
    ];
    for (key, text) in texts {
        info.insert(key.into(), text.into());
    }
    // A menu-bar app: not in the Dock, not even for a moment.
    info.insert("LSUIElement".into(), true.into());
    info
}

fn xml(dictionary: &Dictionary) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![];
    Value::Dictionary(dictionary.clone()).to_writer_xml(&mut bytes)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Removes a layout of an earlier run, and nothing else.
fn clear(root: &Path) -> anyhow::Result<()> {
    if !root.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let ours = ["Applications", "Library", "usr"].iter().any(|known| name == *known);
        ensure!(ours, "{} has {name:?}, which is not of a package. Give another folder", root.display());
    }
    fs::remove_dir_all(root)?;
    Ok(())
}

fn put(root: &Path, path: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let file = root.join(path);
    fs::create_dir_all(file.parent().context("a path without a folder")?)?;
    fs::write(&file, bytes).with_context(|| file.display().to_string())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    Ok(())
}
