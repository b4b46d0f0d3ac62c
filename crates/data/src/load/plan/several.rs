//! How a column writes several labels: as vectors of 0 and 1, or as names with a separator. Decided
//! by what most cells hold.

use std::collections::BTreeMap;

use crate::error::{DataError, RowFaultKind, shorten};
use crate::labels::LabelMap;
use crate::labels::several::{SEPARATORS, SeveralCell, is_only_a_vector};
use crate::labels::value::{Seen, of_json};
use crate::rows::Table;

/// How several labels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Several {
    /// Vectors of 0 and 1, with a place for each class.
    Vectors {
        /// Places.
        width: usize,
        /// Whether signs part them.
        digits: Digits,
    },
    /// Lists of names, or of the numbers of classes.
    Names {
        /// What parts names in a text.
        separator: Option<char>,
    },
}

/// How the 0 and 1 of a vector are parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    /// By blanks or signs.
    Parted,
    /// Not at all: `010`.
    Joined,
}

impl Digits {
    /// The vector in a cell.
    pub(super) fn read(self, cell: &SeveralCell) -> Option<Vec<f32>> {
        match self {
            Self::Parted => cell.bits(),
            Self::Joined => cell.digits(),
        }
    }
}

/// A separator that fewer of the cells with any hold is an odd cell's, not the column's: one in
/// ten.
const RARE: usize = 10;

/// What the cells of a column hold.
#[derive(Default)]
struct Counts {
    /// Vectors by length.
    lengths: BTreeMap<usize, usize>,
    /// Vectors that cannot be lists of the classes 0 and 1.
    only_vectors: usize,
    /// Cells of one 0 or 1.
    single: usize,
    /// Cells of anything else, gaps and empty ones aside.
    others: usize,
    /// Texts of 0 and 1 that are no lists.
    texts: usize,
    /// Digits without a separator by length, and how many of those begin with 0.
    joined: BTreeMap<usize, usize>,
    leading_zeros: usize,
}

impl Counts {
    fn of(cells: &[(u64, SeveralCell)]) -> Self {
        let mut counts = Self::default();
        for (_, cell) in cells {
            if let Some(digits) = cell.digits() {
                *counts.joined.entry(digits.len()).or_default() += 1;
                counts.leading_zeros += usize::from(digits[0] == 0.0);
            }
            match (cell, cell.bits()) {
                (SeveralCell::Gap(_) | SeveralCell::Empty, _) => {}
                (_, None) => counts.others += 1,
                (_, Some(bits)) => {
                    counts.texts += usize::from(matches!(cell, SeveralCell::Text(_)));
                    if bits.len() == 1 {
                        counts.single += 1;
                    } else {
                        *counts.lengths.entry(bits.len()).or_default() += 1;
                        counts.only_vectors += usize::from(is_only_a_vector(&bits));
                    }
                }
            }
        }
        counts
    }

    fn vectors(&self) -> usize {
        self.lengths.values().sum()
    }
}

/// The commonest length, with how many have it.
fn modal(lengths: &BTreeMap<usize, usize>) -> Option<(usize, usize)> {
    let most = lengths.iter().max_by_key(|(_, count)| **count)?;
    Some((*most.0, *most.1))
}

impl Several {
    /// Decides over a column's cells; `known` are the classes where they are given.
    pub(super) fn of(
        cells: &[(u64, SeveralCell)],
        known: Option<&LabelMap>,
        table: &Table,
        column: &str,
    ) -> Result<Self, DataError> {
        let counts = Counts::of(cells);
        let names = || Self::Names {
            separator: separator(cells, known),
        };
        // `010` is a vector where others like it are most of the column; `10` and `11` alone are
        // numbers.
        if let Some((width, n)) = modal(&counts.joined)
            && counts.leading_zeros > 0
            && 2 * n > counts.others + counts.vectors() + counts.single
        {
            return Ok(Self::Vectors {
                width: known.map_or(width, LabelMap::len),
                digits: Digits::Joined,
            });
        }
        let vectors = counts.vectors();
        if counts.others > 0 && (counts.only_vectors == 0 || vectors < counts.others) {
            return Ok(names());
        }
        if counts.others == vectors && vectors > 0 {
            return Err(tie(cells, table, column));
        }
        let all = vectors + counts.single;
        let width = match modal(&counts.lengths) {
            Some((width, n)) if 2 * n > all => Some(width),
            Some(_) | None => known.map(LabelMap::len).filter(|n| *n == 1 && all > 0),
        };
        // Lists of the classes 0 and 1, as far as they go.
        let may_be_names = counts.only_vectors == 0 && counts.texts == 0;
        let fits = |width: usize| known.is_none_or(|map| map.len() == width);
        match width {
            _ if all == 0 => Ok(names()),
            Some(width) if fits(width) || !may_be_names => Ok(Self::Vectors {
                width: known.map_or(width, LabelMap::len),
                digits: Digits::Parted,
            }),
            Some(_) | None if may_be_names => Ok(names()),
            Some(_) | None => Err(no_vectors(cells, table, column)),
        }
    }

    /// What is wrong with a cell of such a column; nothing about what its names are.
    pub(super) fn fault(&self, cell: &SeveralCell) -> Option<RowFaultKind> {
        let odd = |what, others| {
            Some(RowFaultKind::OddLabel {
                found: shorten(&shown(cell)),
                what,
                others,
            })
        };
        match (*self, cell) {
            (_, SeveralCell::Gap(_)) => None,
            (Self::Vectors { .. }, SeveralCell::Empty) => Some(RowFaultKind::Unlabelled {
                found: None,
                nearest: None,
            }),
            (Self::Vectors { width, digits }, cell) => match digits.read(cell) {
                Some(bits) if bits.len() == width => None,
                Some(bits) => Some(RowFaultKind::LabelCount {
                    expected: width,
                    found: bits.len(),
                }),
                None => odd("no vector", "vectors of 0 and 1"),
            },
            (Self::Names { .. }, SeveralCell::Empty) => None,
            (Self::Names { separator }, cell) => {
                if let Some(bits) = cell.bits().filter(|bits| is_only_a_vector(bits)) {
                    return odd("a vector", "names or numbers of classes")
                        .filter(|_| bits.len() > 1);
                }
                match separator {
                    Some(',') if cell.holds('|') => odd("parted by `|`", "parted by `,`"),
                    Some(',') if cell.holds(';') => odd("parted by `;`", "parted by `,`"),
                    Some(';') if cell.holds('|') => odd("parted by `|`", "parted by `;`"),
                    Some(_) | None => None,
                }
            }
        }
    }
}

/// What parts names in the texts of a column: the sign under which most texts are names of known
/// classes; else a bar before a semicolon before a comma, so that commas stay in names. A sign that
/// is rare among them is an odd cell's.
fn separator(cells: &[(u64, SeveralCell)], known: Option<&LabelMap>) -> Option<char> {
    if let Some(map) = known {
        let is_class = |item: &serde_json::Value| matches!(of_json(item, known), Ok(Seen::Value(v)) if map.class(&v.name).is_some());
        let fits = |sign: Option<char>| {
            let fitting = |(_, cell): &&(u64, SeveralCell)| cell.items(sign).iter().all(is_class);
            cells.iter().filter(fitting).count()
        };
        let ways = [None].into_iter().chain(SEPARATORS.map(Some));
        let best = ways
            .rev()
            .map(|sign| (fits(sign), sign))
            .max_by_key(|(n, _)| *n);
        if let Some((1.., sign)) = best {
            return sign.filter(|sign| cells.iter().any(|(_, cell)| cell.holds(*sign)));
        }
    }
    let count = |sign| cells.iter().filter(|(_, cell)| cell.holds(sign)).count();
    let has_any = |cell: &SeveralCell| SEPARATORS.iter().any(|sign| cell.holds(*sign));
    let any = cells.iter().filter(|(_, cell)| has_any(cell)).count();
    let common = |sign: &char| {
        let n = count(*sign);
        n > 0 && n * RARE >= any
    };
    SEPARATORS.into_iter().find(common)
}

fn shown(cell: &SeveralCell) -> String {
    match cell {
        SeveralCell::Gap(found) => found.clone().unwrap_or_default(),
        SeveralCell::Empty => String::new(),
        SeveralCell::List(items) => serde_json::Value::from(items.clone()).to_string(),
        SeveralCell::Text(text) => text.clone(),
    }
}

fn tie(cells: &[(u64, SeveralCell)], table: &Table, column: &str) -> DataError {
    let example = |is_vector: bool| {
        let is_sought = |cell: &&SeveralCell| match cell {
            SeveralCell::Gap(_) | SeveralCell::Empty => false,
            SeveralCell::List(_) | SeveralCell::Text(_) => {
                cell.bits().is_some_and(|bits| bits.len() > 1) == is_vector
            }
        };
        let found = cells.iter().map(|(_, cell)| cell).find(is_sought);
        found.map(shown).unwrap_or_default()
    };
    let is_vector = |(_, cell): &&(u64, SeveralCell)| cell.bits().is_some_and(|b| b.len() > 1);
    DataError::MixedLabels {
        path: table.path().into(),
        column: column.to_string(),
        count: cells.iter().filter(is_vector).count() as u64,
        kinds: Box::new([
            ("vectors of 0 and 1", example(true)),
            ("names", example(false)),
        ]),
    }
}

fn no_vectors(cells: &[(u64, SeveralCell)], table: &Table, column: &str) -> DataError {
    let shortest = cells
        .iter()
        .filter(|(_, cell)| cell.bits().is_some())
        .min_by_key(|(_, cell)| cell.bits().map_or(0, |bits| bits.len()));
    let (line, example) = shortest.map_or((0, String::new()), |(line, cell)| (*line, shown(cell)));
    DataError::NoVectors {
        path: table.path().into(),
        column: column.to_string(),
        line,
        example,
    }
}
