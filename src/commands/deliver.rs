//! Reports to where they were asked for.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::{self, AtomicFile, Overwrite};
use attar_eval::render::{self, Renderer, Subject};
use attar_eval::{Report, report};

use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::site::NewFolders;
use crate::talk::{self, say};

/// What the files of `--report` are called, before their extension.
const FILE_STEM: &str = "report";

/// The folder of drawings in that of `--report`.
const PLOTS: &str = "plots";

/// Where reports are wanted besides the terminal.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// A JSON file.
    pub json: Option<PathBuf>,
    /// A folder for every form there is.
    pub folder: Option<PathBuf>,
}

impl Delivery {
    /// Finds out before long work whether the reports can be written after it, beside the `outputs`.
    ///
    /// # Errors
    /// A folder that cannot be made or written to, a report that would take the place of an output or of what is none.
    pub fn check(&self, outputs: &[&Path]) -> Result<()> {
        if let Some(json) = &self.json {
            let at = || format!("while preparing --json for `{}`", json.display());
            check_file(json).doing(at)?;
            check_place(json, outputs, || wrote(named("json")?, json)).doing(at)?;
        }
        if let Some(folder) = &self.folder {
            let at = || format!("while preparing --report for `{}`", folder.display());
            for renderer in render::RENDERERS {
                let path = form(folder, *renderer);
                check_file(&path).doing(at)?;
                check_place(&path, outputs, || is_ours(*renderer, &path, folder)).doing(at)?;
            }
            check_plots(&folder.join(PLOTS)).doing(at)?;
        }
        Ok(())
    }

    /// One report on the terminal and wherever else it is wanted.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn one(&self, report: &Report) -> Result<()> {
        self.shown(Subject::Report(report), "terminal")
    }

    /// One report, of which less is shown than is kept.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn briefly(&self, report: &Report, shown: &Report) -> Result<()> {
        self.files(Subject::Report(report), &|renderer| renderer.render(report))?;
        say(&talk::terminal().render(shown))
    }

    /// Several reports side by side.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn compared(&self, reports: &[Report]) -> Result<()> {
        self.shown(Subject::Comparison(reports), "terminal")
    }

    /// On stdout as `rendering` writes it, and wherever else it is wanted. Files first: what is shown is then on the disk.
    ///
    /// # Errors
    /// A file that cannot be written, a rendering that is not there or has nothing to say of this.
    pub fn shown(&self, subject: Subject<'_>, rendering: &str) -> Result<()> {
        if !named(rendering)?.shows(subject) {
            return Err(Failure::new(format!(
                "there is nothing to show as `{rendering}`: nothing was held to a limit"
            ))
            .hint("render a report that `attar check` wrote, or choose another --format"));
        }
        self.files(subject, &|renderer| subject.text(renderer))?;
        match rendering {
            "terminal" => say(&subject.text(&talk::terminal())),
            _ => say(&subject.text(named(rendering)?)),
        }
    }

    /// One report wherever it is wanted, but not on the terminal, where something else is shown; as JSON with `more` under a
    /// key of its own.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn in_files_with(&self, report: &Report, key: &str, more: &serde_json::Value) -> Result<()> {
        let with_more = |text: String| match serde_json::from_str(&text) {
            Ok(serde_json::Value::Object(mut object)) => {
                object.insert(key.to_owned(), more.clone());
                format!("{:#}\n", serde_json::Value::Object(object))
            }
            _ => text,
        };
        self.files(Subject::Report(report), &|renderer| match renderer.name() {
            "json" => with_more(renderer.render(report)),
            _ => renderer.render(report),
        })
    }

    fn files(&self, subject: Subject<'_>, text_of: &dyn Fn(&dyn Renderer) -> String) -> Result<()> {
        if let Some(folder) = &self.folder {
            for &renderer in render::RENDERERS.iter().filter(|renderer| renderer.shows(subject)) {
                put(&form(folder, renderer), &text_of(renderer))?;
            }
            for plot in subject.plots() {
                put(&folder.join(PLOTS).join(plot.name()).with_extension("svg"), &plot.svg())?;
            }
        }
        match &self.json {
            Some(json) => put(json, &text_of(named("json")?)),
            None => Ok(()),
        }
    }
}

/// Finds out whether a file can be written at `path`.
///
/// # Errors
/// A folder in its way, or one that cannot be made or written to.
pub fn check_file(path: &Path) -> Result<()> {
    let at = || format!("while preparing `{}`", path.display());
    if path.is_dir() {
        return Err(Failure::new("a folder is in the way of the report").hint("name a file")).doing(at);
    }
    let _tried = NewFolders::above(path).doing(at)?;
    Ok(atomic::check_writable(path)?)
}

/// Finds out whether what lies at `path` may be replaced by a report in this rendering.
///
/// # Errors
/// A file that is none, a rendering that is not there.
pub fn check_replaces_ours(path: &Path, rendering: &str) -> Result<()> {
    check_place(path, &[], || wrote(named(rendering)?, path))
}

/// A report that was written before.
///
/// # Errors
/// A file that cannot be read, or is no report of this schema.
pub fn read_report(path: &Path) -> Result<Report> {
    let mut reports = read_reports(path)?;
    match (reports.pop(), reports.len()) {
        (Some(report), 0) => Ok(report),
        (_, others) => Err(Failure::new(format!("`{}` holds {} reports", path.display(), others + 1)).hint(
            "name a report of one model: attar compare keeps those of its outputs in its folder `reports`",
        )),
    }
}

/// The report of a file, or all where it holds a list of them; never none.
///
/// # Errors
/// As [`read_report`], but for several.
pub fn read_reports(path: &Path) -> Result<Vec<Report>> {
    let read = || -> Result<Vec<Report>> { Ok(report::read(&std::fs::read_to_string(path)?)?) };
    read().doing(|| format!("while reading the report `{}`", path.display()))
}

/// Whether two paths lead to one place, though spelled otherwise.
pub fn same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some((parent.canonicalize().ok()?, path.file_name()?.to_owned()))
    };
    a == b || place(a).is_some_and(|a| place(b) == Some(a))
}

/// The file of one form in the folder of a report.
fn form(folder: &Path, renderer: &dyn Renderer) -> PathBuf {
    folder.join(FILE_STEM).with_extension(renderer.extension())
}

/// Finds out whether a report may take the place of what lies at `path`.
fn check_place(path: &Path, outputs: &[&Path], ours: impl FnOnce() -> Result<bool>) -> Result<()> {
    if let Some(output) = outputs.iter().find(|output| same_place(output, path)) {
        let failure = Failure::new(format!("the report would take the place of `{}`", output.display()));
        return Err(failure.hint("name another file"));
    }
    if path.is_file() && !ours()? {
        return Err(Failure::new(format!("`{}` is no report of attar's", path.display()))
            .hint("only reports are replaced: name another file or folder"));
    }
    Ok(())
}

/// The same for the drawings that are there: which ones come is not known yet.
fn check_plots(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let is_svg = path.extension().is_some_and(|extension| extension == "svg");
        let Some(name) = name.filter(|_| is_svg) else { continue };
        check_place(&path, &[], || Ok(render::is_drawing(&name, &start_of(&path)?) != Some(false)))?;
    }
    Ok(())
}

/// Whether a form in the `folder` of a report is attar's. What has no mark is known by the company it keeps.
fn is_ours(renderer: &dyn Renderer, path: &Path, folder: &Path) -> Result<bool> {
    let json = named("json")?;
    let report = form(folder, json);
    Ok(wrote(renderer, path)? || (!renderer.marks() && report.is_file() && wrote(json, &report)?))
}

/// Whether a file begins as those of `renderer` do; an empty one may be taken too.
fn wrote(renderer: &dyn Renderer, path: &Path) -> Result<bool> {
    let start = start_of(path)?;
    Ok(start.is_empty() || renderer.wrote(&start))
}

fn start_of(path: &Path) -> Result<String> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4096).read_to_end(&mut start))
        .doing(|| format!("while reading `{}`", path.display()))?;
    Ok(String::from_utf8_lossy(&start).into_owned())
}

/// The rendering of this name.
///
/// # Errors
/// There is none.
pub fn named(rendering: &str) -> Result<&'static dyn Renderer> {
    render::renderer(rendering).ok_or_else(|| Failure::new(format!("there is no rendering `{rendering}`")))
}

/// Writes one report in this rendering.
///
/// # Errors
/// As [`put`]; a rendering that is not there.
pub fn put_as(rendering: &str, path: &Path, report: &Report) -> Result<()> {
    put(path, &named(rendering)?.render(report))
}

/// Writes a report; reports are ours to replace.
///
/// # Errors
/// A file that cannot be written.
pub fn put(path: &Path, text: &str) -> Result<()> {
    let write = || -> Result<()> {
        let _made = NewFolders::above(path)?;
        let mut file = AtomicFile::create(path, Overwrite::Yes)?;
        file.write_at(0, text.as_bytes())?;
        Ok(file.finish()?)
    };
    write().doing(|| format!("while writing the report `{}`", path.display()))
}
