//! The package that Installer opens: one component (what is installed, its bill of materials, its scripts) and the
//! distribution around it, which says on which Macs it may be installed and what people read before.
//!
//! The same inputs give the same bytes: the only time in it is the one that is given.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use crate::names::{APP_PATH, CLI_PATH, HELPER_PATH, MINIMUM_MACOS, PACKAGE_IDENTIFIER};
use crate::tree::{Entry, Kind};
use crate::universal::slices;
use crate::xar::{self, Member};
use crate::{archive, bom, tree};

/// The component within the container.
const COMPONENT: &str = "Culvert-component.pkg";
const SCRIPTS: [&str; 2] = ["preinstall", "postinstall"];
/// Beside them: the version of the package.
const VERSION: &str = "version";
/// What people read before: the first from `resources/`.
const WELCOME: &str = "welcome.html";
const LICENCE: &str = "license.txt";
const LICENCE_TEXT: &str = concat!(
    "Culvert is licensed under either of the MIT license or the Apache License, Version 2.0, at your option.\n\n",
    include_str!("../../LICENSE-MIT"),
    "\n",
    include_str!("../../LICENSE-APACHE"),
);

type Xml = Writer<Vec<u8>>;

/// What a package is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// What is installed, laid out as below the root of the disk: `bundle` makes it.
    pub root: &'a Path,
    /// `preinstall` and `postinstall`.
    pub scripts: &'a Path,
    /// What people read: `welcome.html`.
    pub resources: &'a Path,
    /// The version that Installer compares.
    pub version: &'a str,
}

/// What is in a package, before it is packed.
#[derive(Debug)]
pub struct Parts {
    /// What is installed.
    pub payload: Vec<Entry>,
    /// The same as the bill of materials tells it.
    pub bill: Vec<Entry>,
    /// The scripts.
    pub scripts: Vec<Entry>,
    /// What people read, by file name.
    pub resources: Vec<(String, Vec<u8>)>,
    /// `PackageInfo`, for the component.
    pub information: Vec<u8>,
    /// `Distribution`, for the whole.
    pub distribution: Vec<u8>,
}

impl Parts {
    /// Reads and makes them.
    ///
    /// # Errors
    /// A missing script, text or program, and what [`tree::read`] refuses.
    pub fn read(inputs: &Inputs<'_>) -> anyhow::Result<Self> {
        let payload = tree::read(inputs.root)?;
        let scripts = scripts(inputs.scripts, inputs.version)?;
        let welcome = inputs.resources.join(WELCOME);
        let welcome = fs::read(&welcome).with_context(|| welcome.display().to_string())?;
        let resources = vec![(WELCOME.into(), welcome), (LICENCE.into(), LICENCE_TEXT.into())];
        let kilobytes = kilobytes(&payload);
        Ok(Self {
            information: package_info(inputs.version, payload.len(), kilobytes)?,
            distribution: distribution(inputs.version, &processors(&payload)?, kilobytes)?,
            bill: payload.clone(),
            payload,
            scripts,
            resources,
        })
    }

    /// The bytes of the package; `epoch` is the time of everything in it, seconds since 1970.
    ///
    /// # Errors
    /// What is too large for the formats.
    pub fn pack(self, epoch: u32) -> anyhow::Result<Vec<u8>> {
        let component = vec![
            Member::File("Bom".into(), bom::write(&self.bill, epoch)?),
            Member::File("Payload".into(), archive::write(&self.payload, epoch)?),
            Member::File("Scripts".into(), archive::write(&self.scripts, epoch)?),
            Member::File("PackageInfo".into(), self.information),
        ];
        let resources = self.resources.into_iter().map(|(name, bytes)| Member::File(name, bytes)).collect();
        let members = [
            Member::File("Distribution".into(), self.distribution),
            Member::Folder("Resources".into(), resources),
            Member::Folder(COMPONENT.into(), component),
        ];
        Ok(xar::write(&members, &iso_time(epoch)?)?)
    }
}

/// The file name of a package that nobody has signed: it says so, and that the app is missing when it is.
pub fn name(root: &Path, version: &str) -> String {
    let app = if root.join(APP_PATH).exists() { "" } else { "-helper" };
    format!("Culvert-{version}{app}-unsigned.pkg")
}

fn iso_time(epoch: u32) -> anyhow::Result<String> {
    let time = time::OffsetDateTime::from_unix_timestamp(epoch.into())?;
    Ok(time.format(time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]"))?)
}

/// The scripts as an archive's entries, with the version, which `preinstall` compares with what is installed. They are
/// programs whatever mode they have here.
fn scripts(folder: &Path, version: &str) -> anyhow::Result<Vec<Entry>> {
    let mut entries = vec![Entry { path: String::new(), mode: 0o755, kind: Kind::Folder }];
    for name in SCRIPTS {
        let file = folder.join(name);
        let bytes = fs::read(&file).with_context(|| format!("{}: a package needs both scripts", file.display()))?;
        ensure!(bytes.starts_with(b"#!/bin/"), "{}: does not begin with #!/bin/sh or #!/bin/bash", file.display());
        entries.push(Entry { path: name.into(), mode: 0o755, kind: Kind::File(bytes) });
    }
    entries.push(Entry { path: VERSION.into(), mode: 0o644, kind: Kind::File(format!("{version}\n").into_bytes()) });
    Ok(entries)
}

/// The processors that every program in it runs on, in Apple's words.
fn processors(entries: &[Entry]) -> anyhow::Result<String> {
    let mut common: Option<Vec<&str>> = None;
    for path in [HELPER_PATH, CLI_PATH] {
        let entry = entries.iter().find(|entry| entry.path == path);
        let entry = entry.with_context(|| format!("/{path} is missing. Run `bundle` again"))?;
        let Kind::File(bytes) = &entry.kind else { continue }; // a link into the app
        let names: Vec<_> =
            slices(bytes).with_context(|| path.to_owned())?.iter().map(|slice| slice.processor).collect();
        let same = common.get_or_insert_with(|| names.clone());
        ensure!(*same == names, "/{path} is for {}, another program for {}", names.join(", "), same.join(", "));
    }
    Ok(common.unwrap_or_default().join(","))
}

fn kilobytes(entries: &[Entry]) -> usize {
    let sizes = entries.iter().map(|entry| if let Kind::File(bytes) = &entry.kind { bytes.len() } else { 0 });
    sizes.sum::<usize>().div_ceil(1024)
}

fn package_info(version: &str, files: usize, kilobytes: usize) -> anyhow::Result<Vec<u8>> {
    let (files, kilobytes) = (files.to_string(), kilobytes.to_string());
    document(|xml| {
        // Folders that are there keep their owners: /usr/local belongs to Homebrew on many Macs.
        let info = xml.create_element("pkg-info").with_attributes([
            ("overwrite-permissions", "false"),
            ("relocatable", "false"),
            ("identifier", PACKAGE_IDENTIFIER),
            ("postinstall-action", "none"),
            ("version", version),
            ("format-version", "2"),
            ("generator-version", "culvert-packaging"),
            ("install-location", "/"),
            ("auth", "root"),
        ]);
        info.write_inner_content(|xml| {
            let payload = [("numberOfFiles", files.as_str()), ("installKBytes", kilobytes.as_str())];
            xml.create_element("payload").with_attributes(payload).write_empty()?;
            // Empty lists: nothing is looked for elsewhere on the disk, nothing kept for its higher version.
            for name in ["bundle-version", "upgrade-bundle", "update-bundle", "atomic-update-bundle", "relocate"] {
                xml.create_element(name).write_empty()?;
            }
            xml.create_element("scripts").write_inner_content(|xml| {
                for name in SCRIPTS {
                    let file = format!("./{name}");
                    xml.create_element(name).with_attribute(("file", file.as_str())).write_empty()?;
                }
                Ok(())
            })?;
            Ok(())
        })?;
        Ok(())
    })
}

fn distribution(version: &str, processors: &str, kilobytes: usize) -> anyhow::Result<Vec<u8>> {
    let (kilobytes, component) = (kilobytes.to_string(), format!("#{COMPONENT}"));
    document(|xml| {
        let script = xml.create_element("installer-gui-script").with_attribute(("minSpecVersion", "2"));
        script.write_inner_content(|xml| {
            xml.create_element("title").write_text_content(BytesText::new("Culvert"))?;
            empty(xml, "welcome", &[("file", WELCOME), ("mime-type", "text/html")])?;
            empty(xml, "license", &[("file", LICENCE), ("mime-type", "text/plain")])?;
            let domains =
                [("enable_anywhere", "false"), ("enable_currentUserHome", "false"), ("enable_localSystem", "true")];
            empty(xml, "domains", &domains)?;
            let options = [
                ("customize", "never"),
                ("require-scripts", "false"),
                ("rootVolumeOnly", "true"),
                ("hostArchitectures", processors),
            ];
            empty(xml, "options", &options)?;
            xml.create_element("volume-check").write_inner_content(|xml| {
                let versions = xml.create_element("allowed-os-versions");
                versions.write_inner_content(|xml| empty(xml, "os-version", &[("min", MINIMUM_MACOS)]))?;
                Ok(())
            })?;
            xml.create_element("choices-outline").write_inner_content(|xml| {
                let line = xml.create_element("line").with_attribute(("choice", "default"));
                line.write_inner_content(|xml| empty(xml, "line", &[("choice", PACKAGE_IDENTIFIER)]))?;
                Ok(())
            })?;
            empty(xml, "choice", &[("id", "default")])?;
            let choice =
                xml.create_element("choice").with_attributes([("id", PACKAGE_IDENTIFIER), ("visible", "false")]);
            choice.write_inner_content(|xml| empty(xml, "pkg-ref", &[("id", PACKAGE_IDENTIFIER)]))?;
            let reference = xml.create_element("pkg-ref").with_attributes([
                ("id", PACKAGE_IDENTIFIER),
                ("version", version),
                ("onConclusion", "none"),
                ("installKBytes", kilobytes.as_str()),
                ("auth", "root"),
            ]);
            reference.write_text_content(BytesText::new(&component))?;
            Ok(())
        })?;
        Ok(())
    })
}

fn document(content: impl FnOnce(&mut Xml) -> std::io::Result<()>) -> anyhow::Result<Vec<u8>> {
    let mut xml = Writer::new_with_indent(vec![], b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("utf-8"), None)))?;
    content(&mut xml)?;
    Ok(xml.into_inner())
}

fn empty(xml: &mut Xml, name: &str, attributes: &[(&str, &str)]) -> std::io::Result<()> {
    xml.create_element(name).with_attributes(attributes.iter().copied()).write_empty()?;
    Ok(())
}
