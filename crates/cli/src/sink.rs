//! Where the lines of a command go.

use std::io::Write;
use std::path::Path;

use lowrank_formats::PendingFile;
use lowrank_formats::files::DeviceFile;
use lowrank_run::{RunError, RunResult};

use crate::output;

/// Where lines go: standard output, a pipe or device, or a file that appears when it is complete.
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A pipe or device, and its name.
    Stream(DeviceFile, String),
    /// A file and its name.
    File(Box<PendingFile>, String),
}

impl Sink {
    /// Opens the file, or standard output.
    pub fn open(path: Option<&str>) -> RunResult<Self> {
        let Some(path) = path.filter(|path| *path != "-") else {
            return Ok(Sink::Stdout);
        };
        if let Some(device) = DeviceFile::open(Path::new(path))? {
            return Ok(Sink::Stream(device, path.to_owned()));
        }
        Ok(Sink::File(
            Box::new(PendingFile::create(Path::new(path))?),
            path.to_owned(),
        ))
    }

    /// Writes one line.
    pub fn write(&mut self, line: &impl std::fmt::Display) -> RunResult {
        match self {
            Sink::Stdout => output::println(line),
            Sink::Stream(to, path) => {
                writeln!(to, "{line}").map_err(|error| cannot_write(path, &error))?;
            }
            Sink::File(to, path) => {
                writeln!(to, "{line}").map_err(|error| cannot_write(path, &error))?;
            }
        }
        Ok(())
    }

    /// Makes the file appear.
    pub fn commit(self) -> RunResult {
        match self {
            Sink::Stdout => Ok(()),
            Sink::Stream(mut to, path) => to.flush().map_err(|error| cannot_write(&path, &error)),
            Sink::File(file, _) => Ok(file.commit()?),
        }
    }
}

fn cannot_write(path: &str, error: &std::io::Error) -> RunError {
    RunError::failure(format!("cannot write `{path}`")).caused_by(Some(error))
}
