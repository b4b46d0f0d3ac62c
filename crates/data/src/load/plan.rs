//! How a file's labels are to be understood: decided over the whole file before any row is read for good.

use rayon::prelude::*;

use super::LoadSpec;
use super::row::list;
use crate::error::DataError;
use crate::labels::{IGNORE_INDEX, LabelMap, MultiCell, Task, class_name, multi};
use crate::rows::{Cell, Table};

/// The classes, and what numbers in lists mean.
pub(super) struct LabelPlan {
    map: Option<LabelMap>,
    /// Lists of 0 and 1 are vectors with a place for each class.
    pub(super) vectors: bool,
}

impl LabelPlan {
    /// Looks over the labels of all rows. Cells that cannot be read count for nothing here: reading the rows reports them.
    pub(super) fn new(
        table: &Table,
        label: Option<&str>,
        spec: &LoadSpec,
    ) -> Result<Self, DataError> {
        let Some(label) = label else {
            return Ok(Self {
                map: spec.labels.clone(),
                vectors: false,
            });
        };
        match spec.task {
            Task::Regression | Task::CausalLm => Ok(Self {
                map: None,
                vectors: false,
            }),
            Task::SingleLabel => {
                let map = known_or_learned(spec, || {
                    names_of(table, label, |cell| Ok(vec![class_name(cell)?]))
                })?;
                Ok(Self {
                    map,
                    vectors: false,
                })
            }
            Task::TokenClassification => {
                let map = known_or_learned(spec, || {
                    names_of(table, label, |cell| {
                        list(cell, "")?
                            .iter()
                            .map(|item| class_name(Cell::Json(item)))
                            .collect()
                    })
                })?;
                Ok(Self {
                    map,
                    vectors: false,
                })
            }
            Task::MultiLabel => Self::multi_label(table, label, spec),
        }
    }

    fn multi_label(table: &Table, label: &str, spec: &LoadSpec) -> Result<Self, DataError> {
        let cells: Vec<MultiCell> = table
            .rows()
            .par_iter()
            .filter_map(|row| table.get(row, label).and_then(|cell| multi(cell).ok()))
            .collect();
        let lengths = || {
            cells.iter().filter_map(|cell| match cell {
                MultiCell::Bits(bits) => Some(bits.len()),
                MultiCell::Names(_) => None,
            })
        };
        let named = cells
            .iter()
            .any(|cell| matches!(cell, MultiCell::Names(names) if !names.is_empty()));
        let width = match &spec.labels {
            Some(map) => map.len(),
            None => lengths().next().unwrap_or(0),
        };
        // One place only would make [0] and [1] lists of one class as well: then they are.
        let vectors =
            width > 1 && !named && lengths().next().is_some() && lengths().all(|n| n == width);
        let map = match &spec.labels {
            Some(map) => Some(map.clone()),
            None if vectors => Some(LabelMap::new((0..width).map(|i| i.to_string()).collect())?),
            None => {
                let names = cells.iter().flat_map(|cell| match cell {
                    MultiCell::Names(names) => names.clone(),
                    MultiCell::Bits(bits) => bits.iter().map(f32::to_string).collect(),
                });
                let names: Vec<String> = names.collect();
                learned(&names)?
            }
        };
        Ok(Self { map, vectors })
    }

    /// The classes.
    pub(super) fn map(&self) -> Option<&LabelMap> {
        self.map.as_ref()
    }

    /// The classes, for the caller.
    pub(super) fn into_map(self) -> Option<LabelMap> {
        self.map
    }
}

fn known_or_learned(
    spec: &LoadSpec,
    names: impl FnOnce() -> Vec<String>,
) -> Result<Option<LabelMap>, DataError> {
    match &spec.labels {
        Some(map) => Ok(Some(map.clone())),
        None => learned(&names()),
    }
}

/// A map of the names, if there are any: a file of which no label can be read is reported row by row.
fn learned(names: &[String]) -> Result<Option<LabelMap>, DataError> {
    let ignored = IGNORE_INDEX.to_string();
    let names = names
        .iter()
        .map(String::as_str)
        .filter(|name| !name.is_empty() && *name != ignored);
    let mut names = names.peekable();
    if names.peek().is_none() {
        return Ok(None);
    }
    Ok(Some(LabelMap::learn(names)?))
}

fn names_of<F>(table: &Table, label: &str, read: F) -> Vec<String>
where
    F: Fn(Cell) -> Result<Vec<String>, crate::error::RowFaultKind> + Sync,
{
    table
        .rows()
        .par_iter()
        .filter_map(|row| table.get(row, label).and_then(|cell| read(cell).ok()))
        .flatten_iter()
        .collect()
}
