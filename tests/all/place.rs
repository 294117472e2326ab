//! A folder of its own for one test, and the program run inside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// No test comes near this; a parser that loops on a hostile file does.
const LONGEST: Duration = Duration::from_mins(5);

/// The program under test.
pub const ATTAR: &str = env!("CARGO_BIN_EXE_attar");

/// A file of the repository's `fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The real models and texts, or a visible skip.
pub fn shared(what: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("ATTAR_SHARED").map(PathBuf::from);
    let path = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared")).join(what);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("there is no {}", path.display()));
    None
}

/// Says that a test, or a part of one, was left out.
#[expect(clippy::print_stderr, reason = "a skip must be seen")]
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// Where a test works: the fixture model is there as `books-2m`, and so are both texts.
///
/// Paths on the command lines of tests start here.
pub struct Place {
    folder: TempDir,
}

/// What a run of the program came to.
pub struct Run {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.link_folder(&fixture("books-2m"), "books-2m");
        for name in ["calibration.txt", "heldout.txt"] {
            link(&fixture(name), &place.at(name));
        }
        place
    }

    /// A folder `name` whose files stand for those of a folder elsewhere; what is done to it is not done to that one.
    pub fn link_folder(&self, elsewhere: &Path, name: &str) {
        fs::create_dir_all(self.at(name)).unwrap();
        for entry in fs::read_dir(elsewhere).unwrap() {
            let entry = entry.unwrap();
            link(&entry.path(), &self.at(name).join(entry.file_name()));
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.at(name), content).unwrap();
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.at(name)).unwrap()).unwrap()
    }

    /// Runs `attar` with the words of `line`.
    pub fn run(&self, line: &str) -> Run {
        self.run_with(&mut attar(line))
    }

    /// Runs a command in this folder.
    pub fn run_with(&self, command: &mut Command) -> Run {
        // What a run says must not depend on the machine: devices have tests of their own.
        let command =
            command.current_dir(self.folder.path()).timeout(LONGEST).env("CUDA_VISIBLE_DEVICES", "");
        command.output().unwrap().into()
    }

    /// Runs what must succeed, and gives what it said on stdout.
    #[track_caller]
    pub fn done(&self, line: &str) -> String {
        let run = self.run(line);
        assert_eq!(run.code, Some(0), "attar {line}\n{}", run.stderr);
        run.stdout
    }

    /// Runs what must be refused before any work: nothing but an error that says every one of `parts`, and a hint.
    #[track_caller]
    pub fn refuses(&self, line: &str, parts: &[&str]) {
        let stderr = self.fails(line, parts);
        assert!(stderr.starts_with("error:"), "attar {line}\nwork was begun:\n{stderr}");
    }

    /// Runs what must fail, sooner or later, with exit code 2, an error that says every one of `parts`, a hint, nothing on
    /// stdout and nothing on the disk. Gives what it said on stderr.
    #[track_caller]
    pub fn fails(&self, line: &str, parts: &[&str]) -> String {
        self.fails_with(&mut attar(line), parts)
    }

    /// The same of any command.
    #[track_caller]
    pub fn fails_with(&self, command: &mut Command, parts: &[&str]) -> String {
        let before = self.contents();
        let run = self.run_with(command);
        run.is_complaint(parts);
        self.assert_contents(&before);
        run.stderr
    }

    /// Every file, folder and link below this one, with the bytes of files.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut contents = BTreeMap::new();
        collect(self.folder.path(), &mut contents);
        contents
    }

    /// Nothing has come, gone or changed.
    #[track_caller]
    pub fn assert_contents(&self, before: &BTreeMap<PathBuf, Vec<u8>>) {
        let after = self.contents();
        assert!(before.keys().eq(after.keys()), "before {:#?}\nafter {:#?}", before.keys(), after.keys());
        for (path, bytes) in before {
            assert!(*bytes == after[path], "{} has changed", path.display());
        }
    }
}

/// `attar` with the words of `line`, and nobody but the test to listen.
pub fn attar(line: &str) -> Command {
    let mut command = Command::new(ATTAR);
    command.args(line.split_whitespace()).env_remove("GITHUB_ACTIONS");
    command
}

/// Every write past `blocks` of 512 or 1024 bytes is refused, in the way a full disk refuses it.
#[cfg(unix)]
pub fn on_a_full_disk(line: &str, blocks: u32) -> Command {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, ATTAR]).args(line.split_whitespace());
    command
}

#[cfg(unix)]
fn link(elsewhere: &Path, here: &Path) {
    std::os::unix::fs::symlink(elsewhere, here).unwrap();
}

#[cfg(not(unix))]
fn link(elsewhere: &Path, here: &Path) {
    fs::copy(elsewhere, here).unwrap();
}

fn collect(folder: &Path, contents: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let bytes = if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if kind.is_dir() {
            collect(&path, contents);
        }
        contents.insert(path, bytes);
    }
}

impl Run {
    /// Exit code 2, nothing on stdout, and an error that says every one of `parts` and has a hint.
    #[track_caller]
    pub fn is_complaint(&self, parts: &[&str]) {
        let Self { code, stdout, stderr } = self;
        assert_eq!(*code, Some(2), "{stderr}");
        assert_eq!(stdout, "", "{stderr}");
        let Some(at) = stderr.find("error:") else { panic!("no error in:\n{stderr}") };
        let (error, hint) =
            stderr[at..].split_once("hint:").unwrap_or_else(|| panic!("no hint in:\n{stderr}"));
        assert!(!hint.trim().is_empty(), "an empty hint in:\n{stderr}");
        for part in parts {
            assert!(error.contains(part) || hint.contains(part), "no `{part}` in:\n{stderr}");
        }
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
