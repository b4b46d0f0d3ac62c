//! METEOR's tables in a folder: unpacked, or in `meteor-1.5.jar` with `data/paraphrase-en.gz`
//! beside it, as the Python package pycocoevalcap has them.

use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::{DeflateDecoder, MultiGzDecoder};
use lowrank_formats::files::{self, Ceiling, Stream};
use lowrank_metrics::meteor::{Meteor, TableError};

use crate::error::{RunError, RunResult};

const JAR: &str = "meteor-1.5.jar";
const FUNCTION_WORDS: &str = "function/english.words";
const SYNSETS: &str = "synonym/english.synsets";
const EXCEPTIONS: &str = "synonym/english.exceptions";
const PARAPHRASES: [&str; 4] = [
    "data/paraphrase-en.gz",
    "paraphrase-en.gz",
    "data/paraphrase-en",
    "paraphrase-en",
];
/// No table in the jar is as large.
const LONGEST_ENTRY: u64 = 64 << 20;
/// The jar of METEOR 1.5 has 6 MiB.
const LARGEST_JAR: Ceiling = Ceiling::mib(256, "METEOR's jar");

/// A folder of tables.
pub struct MeteorTables {
    folder: PathBuf,
    jar: Option<Vec<u8>>,
}

impl MeteorTables {
    /// Opens the folder.
    ///
    /// # Errors
    /// It is none, or holds no table.
    pub fn open(folder: &str) -> RunResult<Self> {
        let folder = PathBuf::from(folder);
        let jar = folder.join(JAR);
        let tables = Self {
            folder,
            jar: files::read_if_there(&jar, LARGEST_JAR)?,
        };
        let has_table = [FUNCTION_WORDS, SYNSETS]
            .iter()
            .any(|name| files::is_file(&tables.folder.join(name)));
        if tables.jar.is_none() && !has_table && tables.paraphrases().is_none() {
            return Err(RunError::failure(format!(
                "`{}` holds no table of METEOR: expected `{JAR}`, or `{FUNCTION_WORDS}`, `{SYNSETS}`, `{EXCEPTIONS}` and `{}`",
                tables.folder.display(),
                PARAPHRASES[0]
            ))
            .hint("the folder `meteor` of the Python package pycocoevalcap 1.2 has them"));
        }
        Ok(tables)
    }

    /// Gives METEOR what the folder holds.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn fill(&self, meteor: &mut Meteor) -> RunResult {
        if let Some((path, table)) = self.table(FUNCTION_WORDS)? {
            meteor
                .read_function_words(table)
                .map_err(|e| broken(&path, e))?;
        }
        if let (Some((path, synsets)), Some((_, exceptions))) =
            (self.table(SYNSETS)?, self.table(EXCEPTIONS)?)
        {
            meteor
                .read_synonyms(synsets, exceptions)
                .map_err(|e| broken(&path, e))?;
        }
        if let Some(path) = self.paraphrases() {
            let file = BufReader::with_capacity(1 << 17, Stream::open(&path)?);
            let read = match path.extension().is_some_and(|e| e == "gz") {
                true => meteor
                    .read_paraphrases(BufReader::with_capacity(1 << 17, MultiGzDecoder::new(file))),
                false => meteor.read_paraphrases(file),
            };
            read.map_err(|e| broken(&path, e))?;
        }
        Ok(())
    }

    fn paraphrases(&self) -> Option<PathBuf> {
        let mut paths = PARAPHRASES.iter().map(|name| self.folder.join(name));
        paths.find(|path| files::is_file(path))
    }

    /// A small table, from its own file or from the jar.
    fn table(&self, name: &str) -> RunResult<Option<(PathBuf, Box<dyn BufRead>)>> {
        let path = self.folder.join(name);
        if files::is_file(&path) {
            let file = Stream::open(&path)?;
            return Ok(Some((path, Box::new(file))));
        }
        let Some(jar) = &self.jar else {
            return Ok(None);
        };
        let path = self.folder.join(JAR);
        let entry = unzip(jar, name).ok_or_else(|| {
            RunError::failure(format!(
                "`{}` is damaged: no `{name}` can be read from it",
                path.display()
            ))
        })?;
        Ok(Some((path, Box::new(Cursor::new(entry)))))
    }
}

/// An entry of a zip archive; nothing where the archive is damaged or has none of that name.
fn unzip(archive: &[u8], name: &str) -> Option<Vec<u8>> {
    const END: [u8; 4] = *b"PK\x05\x06";
    const ENTRY: [u8; 4] = *b"PK\x01\x02";
    let number = |at: usize, bytes: usize| {
        let field = archive.get(at..at.checked_add(bytes)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        )
    };
    let end = archive.windows(4).rposition(|window| window == END)?;
    let mut at = number(end + 16, 4)?;
    while archive.get(at..at + 4)? == ENTRY {
        let (name_len, extra, comment) = (
            number(at + 28, 2)?,
            number(at + 30, 2)?,
            number(at + 32, 2)?,
        );
        if archive.get(at + 46..at + 46 + name_len)? == name.as_bytes() {
            let (method, size, local) = (
                number(at + 10, 2)?,
                number(at + 20, 4)?,
                number(at + 42, 4)?,
            );
            let data = local + 30 + number(local + 26, 2)? + number(local + 28, 2)?;
            let packed = archive.get(data..data.checked_add(size)?)?;
            let mut entry = Vec::new();
            match method {
                0 => entry.extend_from_slice(packed),
                8 => {
                    let mut unpacked = DeflateDecoder::new(packed).take(LONGEST_ENTRY);
                    unpacked.read_to_end(&mut entry).ok()?;
                }
                _ => return None,
            }
            return Some(entry);
        }
        at += 46 + name_len + extra + comment;
    }
    None
}

fn broken(path: &Path, error: TableError) -> RunError {
    RunError::failure(format!("`{}` is no table of METEOR", path.display())).caused_by(Some(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of one stored entry, made by hand.
    fn archive() -> Vec<u8> {
        let (name, data) = (b"a/b", b"text");
        let mut bytes = b"PK\x03\x04".to_vec();
        bytes.extend([0; 22]);
        bytes.extend([name.len() as u8, 0, 0, 0]);
        bytes.extend(name);
        bytes.extend(data);
        let directory = bytes.len() as u32;
        bytes.extend(b"PK\x01\x02");
        bytes.extend([0; 16]);
        bytes.extend([data.len() as u8, 0, 0, 0, data.len() as u8, 0, 0, 0]);
        bytes.extend([name.len() as u8, 0]);
        bytes.extend([0; 16]);
        bytes.extend(name);
        bytes.extend(b"PK\x05\x06");
        bytes.extend([0; 12]);
        bytes.extend(directory.to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    }

    #[test]
    fn an_entry_comes_out_and_damage_never_panics() {
        let whole = archive();
        assert_eq!(unzip(&whole, "a/b").as_deref(), Some(&b"text"[..]));
        assert_eq!(unzip(&whole, "a/c"), None);
        for length in 0..whole.len() {
            unzip(&whole[..length], "a/b");
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                unzip(&damaged, "a/b");
            }
        }
    }
}
