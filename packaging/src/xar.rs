//! The container of a flat package: xar. A header, a table of contents (XML, zlib), and the heap that it points into.
//!
//! No crate writes one. `apple-xar` reads and signs them, but would bring ring and a second X.509 library into every
//! build; the signing step uses it. Checksums are SHA-1, as productbuild(1) writes them: they find damage, and what a
//! signature covers is named by the signature.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use sha1::{Digest, Sha1};

const HEADER_LEN: u16 = 28;
const VERSION: u16 = 1;
/// The header's number for SHA-1.
const SHA1: u32 = 1;
const SHA1_LEN: usize = 20;

/// A file or folder of the container.
#[derive(Debug)]
pub enum Member {
    /// A file with its bytes.
    File(String, Vec<u8>),
    /// A folder with what is in it.
    Folder(String, Vec<Member>),
}

/// The container of `members`, in their order; `created` is its time of creation, `2026-01-31T12:00:00`.
///
/// # Errors
/// None but of memory.
pub fn write(members: &[Member], created: &str) -> io::Result<Vec<u8>> {
    // The heap begins with the checksum of the table.
    let mut heap = Heap { bytes: vec![0; SHA1_LEN], next_id: 1 };
    let mut xml = Writer::new_with_indent(vec![], b' ', 1);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    xml.create_element("xar").write_inner_content(|xml| {
        xml.create_element("toc").write_inner_content(|xml| {
            text(xml, "creation-time", created)?;
            xml.create_element("checksum").with_attribute(("style", "sha1")).write_inner_content(|xml| {
                text(xml, "offset", "0")?;
                text(xml, "size", &SHA1_LEN.to_string())
            })?;
            members.iter().try_for_each(|member| heap.add(xml, member))
        })?;
        Ok(())
    })?;
    let table = xml.into_inner();
    let mut packed = ZlibEncoder::new(vec![], Compression::best());
    packed.write_all(&table)?;
    let packed = packed.finish()?;
    heap.bytes[..SHA1_LEN].copy_from_slice(&Sha1::digest(&packed));

    let mut file = b"xar!".to_vec();
    file.extend(HEADER_LEN.to_be_bytes());
    file.extend(VERSION.to_be_bytes());
    file.extend((packed.len() as u64).to_be_bytes());
    file.extend((table.len() as u64).to_be_bytes());
    file.extend(SHA1.to_be_bytes());
    Ok([file, packed, heap.bytes].concat())
}

struct Heap {
    bytes: Vec<u8>,
    next_id: u64,
}

impl Heap {
    fn add(&mut self, xml: &mut Writer<Vec<u8>>, member: &Member) -> io::Result<()> {
        let id = self.next_id.to_string();
        self.next_id += 1;
        let element = xml.create_element("file").with_attribute(("id", id.as_str()));
        element.write_inner_content(|xml| match member {
            Member::Folder(name, inside) => {
                text(xml, "name", name)?;
                text(xml, "type", "directory")?;
                inside.iter().try_for_each(|member| self.add(xml, member))
            }
            Member::File(name, bytes) => {
                text(xml, "name", name)?;
                text(xml, "type", "file")?;
                self.data(xml, bytes)
            }
        })?;
        Ok(())
    }

    /// Stored as it is: what is large is packed already.
    fn data(&mut self, xml: &mut Writer<Vec<u8>>, bytes: &[u8]) -> io::Result<()> {
        let (offset, len) = (self.bytes.len().to_string(), bytes.len().to_string());
        self.bytes.extend(bytes);
        let sum: String = Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        xml.create_element("data").write_inner_content(|xml| {
            text(xml, "length", &len)?;
            text(xml, "offset", &offset)?;
            text(xml, "size", &len)?;
            xml.create_element("encoding").with_attribute(("style", "application/octet-stream")).write_empty()?;
            for name in ["extracted-checksum", "archived-checksum"] {
                let element = xml.create_element(name).with_attribute(("style", "sha1"));
                element.write_text_content(BytesText::new(&sum))?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn text(xml: &mut Writer<Vec<u8>>, name: &str, value: &str) -> io::Result<()> {
    xml.create_element(name).write_text_content(BytesText::new(value))?;
    Ok(())
}
