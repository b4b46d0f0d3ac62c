//! What is read from its beginning to its end: regular files, pipes and terminals; and writing to a
//! pipe or device.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
#[cfg(unix)]
use std::time::{Duration, Instant};

use super::read::{Ceiling, kind_name};
use super::system::{self, Handle};
use crate::Result;
use crate::error::FormatError;

/// How long a named pipe may stand without a writer.
#[cfg(unix)]
const WRITER_WAIT: Duration = Duration::from_secs(10);

/// An open file or pipe, read through a buffer. An error of its `Read` names the file.
#[derive(Debug)]
pub struct Stream {
    reader: BufReader<Handle>,
    is_regular: bool,
}

impl Stream {
    /// Opens a regular file, a pipe (`/dev/stdin`, a fifo) or a terminal. A folder and any other
    /// device are errors, and so is a named pipe into which nothing writes within ten seconds.
    pub fn open(path: &Path) -> Result<Stream> {
        let found = system::metadata(path).map_err(FormatError::io("read", path))?;
        let kind = found.file_type();
        if kind.is_dir() {
            return Err(refused(path, &kind));
        }
        let reader = match kind_name(&kind) {
            "a pipe" => open_pipe(path)?,
            _ => buffered(system::open(path).map_err(FormatError::io("read", path))?),
        };
        let handle = reader.get_ref();
        if !kind.is_file() && kind_name(&kind) != "a pipe" && !handle.is_terminal() {
            return Err(refused(path, &kind));
        }
        Ok(Stream {
            is_regular: kind.is_file(),
            reader,
        })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        self.reader.get_ref().path()
    }

    /// Whether it is a regular file, which can be read again.
    pub fn is_regular(&self) -> bool {
        self.is_regular
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader
            .read(buffer)
            .map_err(|error| named(self.reader.get_ref().path(), error))
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let path = self.reader.get_ref().path().to_owned();
        self.reader.fill_buf().map_err(|error| named(&path, error))
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

/// The system's error with the file's name; its kind stays.
fn named(path: &Path, error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::Interrupted {
        return error;
    }
    io::Error::new(error.kind(), FormatError::io("read", path)(error))
}

fn refused(path: &Path, kind: &std::fs::FileType) -> FormatError {
    FormatError::NotRegular {
        path: path.to_owned(),
        found: kind_name(kind),
    }
}

/// All bytes of a file or pipe, up to the ceiling.
pub fn read_any(path: &Path, ceiling: Ceiling) -> Result<Vec<u8>> {
    let found = system::metadata(path).map_err(FormatError::io("read", path))?;
    if found.is_file() {
        return super::read(path, ceiling);
    }
    drain(Stream::open(path)?.reader, path, ceiling)
}

/// Reads to the end; more than the ceiling is an error.
pub(super) fn drain(reader: impl Read, path: &Path, ceiling: Ceiling) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(ceiling.bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(FormatError::io("read", path))?;
    if bytes.len() as u64 > ceiling.bytes {
        return Err(ceiling.exceeded(path, bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(unix)]
fn open_pipe(path: &Path) -> Result<BufReader<Handle>> {
    // What has no name of its own (`/dev/stdin`, `<(command)`) has its writer since it is there.
    if system::canonicalize(path).is_err() {
        let handle = system::open(path).map_err(FormatError::io("read", path))?;
        return Ok(buffered(handle));
    }
    let handle = system::open_without_waiting(path).map_err(FormatError::io("read", path))?;
    let mut reader = buffered(handle);
    let start = Instant::now();
    loop {
        match reader.fill_buf() {
            // No writer yet.
            Ok([]) if start.elapsed() < WRITER_WAIT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok([]) => {
                return Err(FormatError::io("read", path)(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "it is a pipe into which nothing was written for {} s",
                        WRITER_WAIT.as_secs()
                    ),
                )));
            }
            Ok(_) => break,
            // A writer that has written nothing yet.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(FormatError::io("read", path)(error)),
        }
    }
    wait_from_now_on(reader.get_ref()).map_err(FormatError::io("read", path))?;
    Ok(reader)
}

/// What was opened without waiting is read and written as any other file.
#[cfg(unix)]
fn wait_from_now_on(handle: &Handle) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(handle.file())?;
    Ok(rustix::fs::fcntl_setfl(
        handle.file(),
        flags - rustix::fs::OFlags::NONBLOCK,
    )?)
}

/// A pipe to write to. One that has a name is waited for so long only: without a reader it would be
/// for ever.
#[cfg(unix)]
fn open_device(path: &Path) -> Result<Handle> {
    use std::os::unix::fs::FileTypeExt;
    let is_pipe = system::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    if !is_pipe || system::canonicalize(path).is_err() {
        return system::open_write(path).map_err(FormatError::io("write", path));
    }
    let start = Instant::now();
    let no_reader = rustix::io::Errno::NXIO.raw_os_error();
    let handle = loop {
        match system::open_write_without_waiting(path) {
            Err(error) if error.raw_os_error() == Some(no_reader) => {
                if start.elapsed() >= WRITER_WAIT {
                    let wait = WRITER_WAIT.as_secs();
                    let message = format!("it is a pipe that nothing read for {wait} s");
                    let error = io::Error::new(io::ErrorKind::TimedOut, message);
                    return Err(FormatError::io("write", path)(error));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => break opened.map_err(FormatError::io("write", path))?,
        }
    };
    wait_from_now_on(&handle).map_err(FormatError::io("write", path))?;
    Ok(handle)
}

#[cfg(not(unix))]
fn open_device(path: &Path) -> Result<Handle> {
    system::open_write(path).map_err(FormatError::io("write", path))
}

#[cfg(not(unix))]
fn open_pipe(path: &Path) -> Result<BufReader<Handle>> {
    let handle = system::open(path).map_err(FormatError::io("read", path))?;
    Ok(buffered(handle))
}

fn buffered(handle: Handle) -> BufReader<Handle> {
    BufReader::with_capacity(1 << 16, handle)
}

/// A pipe or device that is written to as it stands; a regular file is not, see
/// [`super::PendingFile`].
#[derive(Debug)]
pub struct DeviceFile(BufWriter<Handle>);

impl DeviceFile {
    /// Opens what is there under the name and is neither a file nor a folder; nothing where it is
    /// one of these, or missing.
    pub fn open(path: &Path) -> Result<Option<DeviceFile>> {
        if !system::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return Ok(None);
        }
        Ok(Some(DeviceFile(BufWriter::new(open_device(path)?))))
    }
}

impl Write for DeviceFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
