//! `attar completions` and `attar man`: the command line for shells and for `man`.

use std::path::Path;

use attar_checkpoint::atomic::AtomicFile;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{Cli, Global};
use crate::diagnostic::{Explain, Result};
use crate::pipeline::site::NewFolders;
use crate::talk::say;

/// Prints the script that a shell reads.
///
/// # Errors
/// A stdout that refuses.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "attar", &mut script);
    say(&String::from_utf8_lossy(&script))
}

/// Writes a page for each command into a folder, or prints the program's own.
///
/// # Errors
/// A folder that cannot be written to, a page that is there already.
pub fn pages(folder: Option<&Path>, global: &Global) -> Result<()> {
    let mut attar = Cli::command();
    attar.build();
    let Some(folder) = folder else { return say(&String::from_utf8_lossy(&page(attar)?.1)) };
    let commands: Vec<_> = attar.get_subcommands().cloned().collect();
    for command in [attar].into_iter().chain(commands) {
        let (name, text) = page(command)?;
        let path = folder.join(name);
        let write = || -> Result<()> {
            let _made = NewFolders::above(&path)?;
            let mut file = AtomicFile::create(&path, global.overwrite())?;
            file.write_at(0, &text)?;
            Ok(file.finish()?)
        };
        write()
            .doing(|| format!("while writing the manual page `{}`", path.display()))
            .hint(|| "give --force to replace pages, or name another folder")?;
    }
    global.talk().note(&format!("manual pages are in {}", folder.display()));
    Ok(())
}

/// A command's page and the name of its file.
fn page(command: clap::Command) -> Result<(String, Vec<u8>)> {
    let man = Man::new(command);
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok((man.get_filename(), text))
}
