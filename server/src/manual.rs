//! Completions and man pages, from the same definition of the command line; `scripts/package` asks for them.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Gateways are the administrator's (man-pages(7), "Sections of the manual pages").
const SECTION: &str = "8";

/// What clap does not know, in the order of man-pages(7). Lines of roff.
const MORE: &str = r".SH FILES
.TP
.I /etc/culvert-server/config.toml
The configuration;
.B culvert\-server init
writes it with every key and its default.
.I /etc/culvert-server/config.d/*.toml
is laid over it.
.TP
.I /var/lib/culvert-server
Keys, certificates and the registry. Back this up, and let nobody read it: whoever has it can issue devices.
.TP
.I /run/culvert-server/control.sock
Where the running gateway answers root and members of the group
.BR culvert\-server .
.TP
.I /usr/lib/sysctl.d/60-culvert-server.conf
Lets this host forward packets.
.SH ENVIRONMENT
.B CULVERT_SERVER_SECTION__KEY
sets the key of the section, and wins over the files; a variable with this prefix that sets nothing is an error.
.SH SIGNALS
SIGTERM and SIGINT end every session with its reason and undo what was changed on this host.
.SH SEE ALSO
.BR culvert (1),
.BR systemctl (1),
.BR nft (8)
";

/// The completions for one shell.
pub fn completions(mut command: Command, shell: Shell) -> String {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a page for the program and one for each of its commands into a folder that is there.
///
/// # Errors
/// When a page cannot be written.
pub fn pages(command: Command, folder: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build(); // gives each command its full name
    page(&command, folder, MORE)
}

fn page(command: &Command, folder: &Path, more: &str) -> io::Result<()> {
    let man = Man::new(command.clone()).section(SECTION).manual("System administration");
    let mut text = Vec::new();
    man.render(&mut text)?;
    text.extend(more.as_bytes());
    fs::write(folder.join(man.get_filename()), text)?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        page(below, folder, "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_in_section_8_and_hidden_ones_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let devices = Command::new("devices").subcommand(Command::new("list"));
        let command = Command::new("gw").subcommands([devices, Command::new("man").hide(true)]);
        pages(command, folder.path()).unwrap();
        let mut made: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        made.sort();
        assert_eq!(made, ["gw-devices-list.8", "gw-devices.8", "gw.8"]);
        let first = fs::read_to_string(folder.path().join("gw.8")).unwrap();
        assert!(first.contains(".TH gw 8") && first.contains("config.toml"), "{first}");
    }
}
