//! `culvert-packaging`: each step of the pipeline by itself. `scripts/package macos` runs them in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use culvert_packaging::bundle::{self, Contents};
use culvert_packaging::package::{self, Parts};
use culvert_packaging::verify::{self, Expected};
use culvert_packaging::{imports, output, universal};

/// Makes the Mac package, step by step.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Join programs for single processors into one universal program.
    Join {
        /// The universal program.
        #[arg(long)]
        out: PathBuf,
        /// One program for each processor.
        #[arg(required = true)]
        programs: Vec<PathBuf>,
    },
    /// Print what a program needs of macOS, as lines for packaging/macos/imports.
    Imports {
        /// The program.
        program: PathBuf,
    },
    /// Lay out what is installed: helper, command, launchd's file, and the app when there is one.
    Bundle {
        /// The folder of the universal programs.
        #[arg(long)]
        programs: PathBuf,
        /// Where launchd's files and the lists of imports are.
        #[arg(long, default_value = "packaging/macos")]
        source: PathBuf,
        /// Man pages and completions of the command: man/, bash/, zsh/, fish/.
        #[arg(long)]
        documents: Option<PathBuf>,
        /// The folder to lay it out in; an earlier layout in it is replaced.
        #[arg(long)]
        root: PathBuf,
        #[command(flatten)]
        version: Version,
    },
    /// Pack a layout into a package, which nobody has signed; its name says so.
    Pkg {
        /// The layout that `bundle` made.
        #[arg(long)]
        root: PathBuf,
        /// Where scripts/ and resources/ are.
        #[arg(long, default_value = "packaging/macos")]
        source: PathBuf,
        /// The folder for the package.
        #[arg(long)]
        out: PathBuf,
        /// The time of everything in it, seconds since 1970.
        #[arg(long, env = "SOURCE_DATE_EPOCH")]
        epoch: u32,
        #[command(flatten)]
        version: Version,
    },
    /// Open a finished package with another reader, and say what is wrong with it.
    Verify {
        /// The package.
        package: PathBuf,
        #[command(flatten)]
        version: Version,
    },
}

#[derive(clap::Args)]
struct Version {
    /// The version of everything.
    #[arg(long = "package-version", value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
}

fn main() -> ExitCode {
    match run(Arguments::parse().step) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(step: Step) -> anyhow::Result<()> {
    match step {
        Step::Join { out, programs } => {
            let thin: Vec<_> = programs.iter().map(|program| read(program)).collect::<Result<_, _>>()?;
            output::write(&out, &universal::join(&thin)?, 0o755)
        }
        Step::Imports { program } => {
            for (library, symbol) in imports::needed(&read(&program)?)? {
                println!("{library} {symbol}");
            }
            Ok(())
        }
        Step::Bundle { programs, source, documents, root, version } => {
            let (documents, version) = (documents.as_deref(), version.version.as_str());
            let inputs = bundle::Inputs { programs: &programs, source: &source, documents, version };
            match bundle::lay_out(&inputs, &root)? {
                Contents::App => println!("{}: app, helper and command", root.display()),
                Contents::Helper => println!("{}: helper and command, without an app", root.display()),
            }
            Ok(())
        }
        Step::Pkg { root, source, out, epoch, version } => {
            let (scripts, resources) = (source.join("scripts"), source.join("resources"));
            let version = version.version.as_str();
            let inputs = package::Inputs { root: &root, scripts: &scripts, resources: &resources, version };
            let name = package::name(&root, version);
            ensure!(out.is_dir(), "{} is not a folder. Make it first", out.display());
            let file = out.join(name);
            output::write(&file, &Parts::read(&inputs)?.pack(epoch)?, 0o644)?;
            println!("{}", file.display());
            Ok(())
        }
        Step::Verify { package, version } => {
            println!("{}", verify::verify(&package, &Expected { version: &version.version })?);
            Ok(())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| file.display().to_string())
}
