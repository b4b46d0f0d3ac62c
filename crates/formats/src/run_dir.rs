//! The folder of a run: taken by one process at a time, never shared with another run. Knows
//! nothing of what a run is.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::FormatError;
use crate::files::{self, Handle, LockOutcome, parent, remove_stale, sync_dir};

/// The file that makes a folder a run's. It is locked while a process works there.
const MARKER: &str = ".lowrank-run";

/// A run's folder, held exclusively until dropped. The lock is the operating system's: it goes when
/// the process does, however that ends.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held for its lock alone.
    _marker: Handle,
}

impl RunDir {
    /// Takes a folder for a new run, making it and its parents where they are missing. Other files
    /// may be in it, another run's not: that is [`FormatError::RunExists`].
    pub fn create(path: &Path) -> Result<RunDir> {
        files::create_dir_all(path)?;
        let marker = path.join(MARKER);
        // `create_new` decides between two processes that come at once.
        let mut file = match files::create_new(&marker) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(FormatError::RunExists {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(FormatError::io("create", &marker)(error)),
        };
        lock(&file, path)?;
        file.write_all(b"{\"lowrank_run\": 1}\n")
            .and_then(|()| file.sync_all())
            .map_err(FormatError::io("write", &marker))?;
        sync_dir(path);
        Ok(RunDir {
            path: path.to_owned(),
            _marker: file,
        })
    }

    /// Like [`create`](RunDir::create), but a run that is there already is moved aside first, to
    /// `<name>.old-1` (or the next free number): nothing is deleted. Gives where it went. A run in
    /// use is [`FormatError::RunBusy`].
    pub fn create_moving_old(path: &Path) -> Result<(RunDir, Option<PathBuf>)> {
        if !RunDir::is_run(path) {
            return Ok((RunDir::create(path)?, None));
        }
        let held = RunDir::open(path)?;
        let name = path
            .file_name()
            .map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
        let aside = (1..u32::MAX)
            .map(|number| parent(path).join(format!("{name}.old-{number}")))
            .find(|candidate| !files::exists(candidate))
            .ok_or_else(|| FormatError::RunExists {
                path: path.to_owned(),
            })?;
        files::rename(path, &aside)?;
        drop(held);
        Ok((RunDir::create(path)?, Some(aside)))
    }

    /// Takes the folder of an existing run, to go on with it; what a killed process left
    /// half-written is removed.
    pub fn open(path: &Path) -> Result<RunDir> {
        let marker = path.join(MARKER);
        let file = match files::open_update(&marker) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FormatError::NotARun {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(FormatError::io("open", &marker)(error)),
        };
        lock(&file, path)?;
        remove_stale(path)?;
        Ok(RunDir {
            path: path.to_owned(),
            _marker: file,
        })
    }

    /// Whether a folder holds a run; for reading one needs no lock.
    pub fn is_run(path: &Path) -> bool {
        files::is_file(&path.join(MARKER))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

fn lock(marker: &Handle, path: &Path) -> Result<()> {
    match marker.try_lock().map_err(FormatError::io("lock", path))? {
        // Some network file systems have no locks; the marker still keeps new runs out.
        LockOutcome::Taken | LockOutcome::Unsupported => Ok(()),
        LockOutcome::Held => Err(FormatError::RunBusy {
            path: path.to_owned(),
        }),
    }
}
