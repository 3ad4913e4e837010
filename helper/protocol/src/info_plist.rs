//! What macOS reads of a program that is no bundle: a property list in the section `__TEXT,__info_plist`.
//!
//! codesign takes the program's identifier from it, and so the helper's check of its callers rests on it. A macro, since
//! the section has to be in the program itself; zig's linker knows no `-sectcreate`.

/// Puts the property list of a program into it, on macOS: `info_plist!("net.culvert.ctl", "culvert")`.
#[macro_export]
macro_rules! info_plist {
    ($identifier:literal, $name:literal) => {
        #[cfg(target_os = "macos")]
        #[allow(unsafe_code, reason = "a section by name; nothing but macOS reads it")]
        mod info_plist {
            const TEXT: &str = concat!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
                "<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" ",
                "\"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n",
                "<plist version=\"1.0\"><dict>\n",
                "<key>CFBundleIdentifier</key><string>",
                $identifier,
                "</string>\n<key>CFBundleInfoDictionaryVersion</key><string>6.0</string>\n<key>CFBundleName</key><string>",
                $name,
                "</string>\n<key>CFBundleShortVersionString</key><string>",
                env!("CARGO_PKG_VERSION"),
                "</string>\n<key>CFBundleVersion</key><string>",
                env!("CARGO_PKG_VERSION"),
                "</string>\n</dict></plist>\n",
            );
            #[used]
            #[unsafe(link_section = "__TEXT,__info_plist")]
            static BYTES: [u8; TEXT.len()] = match TEXT.as_bytes().first_chunk() {
                Some(bytes) => *bytes,
                None => unreachable!(),
            };
        }
    };
}
