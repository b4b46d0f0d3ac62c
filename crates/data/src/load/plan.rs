//! How a file's labels are to be understood: decided over the whole file before any row is read for
//! good, so that one odd row is a fault and never changes what the others mean.

mod several;

use rayon::prelude::*;
use serde_json::Value;

use self::several::Several;
use lowrank_formats::nearest;

use super::LoadSpec;
use super::row::list;
use crate::columns::LabelColumns;
use crate::error::{DataError, RowFaultKind, shorten};
use crate::labels::census::{Census, Form, Tie};
use crate::labels::several::SeveralCell;
use crate::labels::value::{self, ClassValue, Kind};
use crate::labels::{IGNORE_INDEX, Label, LabelLayout, LabelMap, LabelOrigin, Naming, Task};
use crate::rows::{Cell, Row, Table};

/// The classes, and what the cells of the column mean.
pub(super) struct LabelPlan {
    map: Option<LabelMap>,
    /// What the column's values are, where the map was learned from them.
    form: Option<Form>,
    /// How several labels are written, where there are several.
    several: Option<Several>,
    origin: LabelOrigin,
    /// Names that stand in the column both with and without blanks around them; `None` where names
    /// are not learned.
    padded: Option<Vec<String>>,
}

impl LabelPlan {
    /// Looks over the labels of all rows. Cells that cannot be read count for nothing here: reading
    /// the rows reports them.
    pub(super) fn new(
        table: &Table,
        label: Option<&LabelColumns>,
        spec: &LoadSpec,
    ) -> Result<Self, DataError> {
        let given = Self {
            map: spec.labels.clone(),
            form: None,
            several: None,
            origin: spec.labels_from,
            padded: None,
        };
        let column = match label {
            None => return Ok(given),
            Some(LabelColumns::Each(columns)) => {
                let learned = || LabelMap::new(columns.clone());
                let map = given.map.clone().map_or_else(learned, Ok)?;
                return Ok(Self {
                    map: Some(map),
                    ..given
                });
            }
            Some(LabelColumns::One(column)) => column.as_str(),
        };
        match spec.task {
            Task::Regression | Task::CausalLm => Ok(Self { map: None, ..given }),
            Task::MultiLabel => given.of_several(table, column),
            Task::SingleLabel if given.map.is_none() => {
                let census = census_of(table.rows(), |row, census| {
                    let seen = value::of_cell(table.get(row, column), None);
                    count(seen, census);
                });
                given.learned(&census, table, column)
            }
            Task::TokenClassification if given.map.is_none() => {
                let census = census_of(table.rows(), |row, census| {
                    let items = table.get(row, column).and_then(|cell| list(cell, "").ok());
                    for item in items.iter().flat_map(|items| items.iter()) {
                        if !is_ignored(item) {
                            count(value::of_json(item, None), census);
                        }
                    }
                });
                given.learned(&census, table, column)
            }
            Task::SingleLabel | Task::TokenClassification => Ok(given),
        }
    }

    fn of_several(self, table: &Table, column: &str) -> Result<Self, DataError> {
        let known = self.map.as_ref();
        let cells: Vec<(u64, SeveralCell)> = table
            .rows()
            .par_iter()
            .filter_map(|row| {
                let cell = crate::labels::several::several(table.get(row, column), known);
                Some((row.line, cell.ok()?))
            })
            .collect();
        let several = Several::of(&cells, known, table, column)?;
        let plan = Self {
            several: Some(several),
            ..self
        };
        match several {
            _ if plan.map.is_some() => Ok(plan),
            Several::Vectors { width, .. } => {
                let names = (0..width).map(|i| i.to_string()).collect();
                Ok(Self {
                    map: Some(LabelMap::new(names)?),
                    ..plan
                })
            }
            Several::Names { separator } => {
                let mut census = Census::default();
                let fitting = cells
                    .iter()
                    .filter(|(_, cell)| several.fault(cell).is_none());
                for item in fitting.flat_map(|(_, cell)| cell.items(separator)) {
                    count(value::of_json(&item, None), &mut census);
                }
                plan.learned(&census, table, column)
            }
        }
    }

    /// With a map of the names, if there are any: a file of which no label can be read is reported
    /// row by row.
    fn learned(self, census: &Census, table: &Table, column: &str) -> Result<Self, DataError> {
        let form = census.form().map_err(|tie| mixed(tie, table, column))?;
        let names = form.map(|form| census.names(form)).unwrap_or_default();
        let map = match names.is_empty() {
            true => None,
            false => Some(LabelMap::learn(names.iter().map(String::as_str))?),
        };
        Ok(Self {
            map,
            form,
            padded: Some(census.padded()),
            ..self
        })
    }

    /// The names that were given; words for gaps among them are classes.
    fn known(&self) -> Option<&LabelMap> {
        self.map.as_ref().filter(|_| self.form.is_none())
    }

    /// Who named the classes.
    pub(super) fn naming(&self) -> Naming {
        match (&self.padded, self.origin) {
            (Some(padded), _) => Naming::Learned {
                padded: padded.clone(),
            },
            (None, LabelOrigin::TrainedHead | LabelOrigin::Head) => Naming::OfHead,
            (None, LabelOrigin::TrainingRows | LabelOrigin::Flag | LabelOrigin::Adapter) => {
                Naming::Given
            }
        }
    }

    /// How labels are written, for the summary.
    pub(super) fn layout(&self, task: Task) -> LabelLayout {
        match (task, self.several) {
            (Task::Regression, _) => LabelLayout::Number,
            (Task::TokenClassification, _) => LabelLayout::ClassAWord,
            (Task::CausalLm, _) => LabelLayout::Tokens,
            (Task::SingleLabel, _) => LabelLayout::Class,
            (Task::MultiLabel, None) => LabelLayout::ColumnALabel,
            (Task::MultiLabel, Some(Several::Vectors { .. })) => LabelLayout::Vector,
            (Task::MultiLabel, Some(Several::Names { separator })) => {
                LabelLayout::Names { separator }
            }
        }
    }

    /// The class in a cell.
    pub(super) fn class(&self, cell: Option<Cell>) -> Result<u32, RowFaultKind> {
        self.class_of(&value::of_cell(cell, self.known())?.value()?)
    }

    /// The classes in a list of them, one for each word.
    pub(super) fn classes(&self, cell: Option<Cell>) -> Result<Vec<i64>, RowFaultKind> {
        let none = || RowFaultKind::Unlabelled {
            found: None,
            nearest: None,
        };
        let items = list(cell.ok_or_else(none)?, "a list of labels")?;
        let class = |item: &Value| match is_ignored(item) {
            true => Ok(IGNORE_INDEX),
            false => {
                let value = value::of_json(item, self.known())?.value()?;
                Ok(self.class_of(&value)?.into())
            }
        };
        items.iter().map(class).collect()
    }

    /// The labels in a cell of several.
    pub(super) fn several(&self, cell: Option<Cell>) -> Result<Label, RowFaultKind> {
        let cell = crate::labels::several::several(cell, self.known())?;
        if let SeveralCell::Gap(found) = cell {
            return Err(RowFaultKind::Unlabelled {
                found,
                nearest: None,
            });
        }
        if let Some(fault) = self.several.and_then(|form| form.fault(&cell)) {
            return Err(fault);
        }
        let names = match self.several {
            Some(Several::Vectors { digits, .. }) => {
                return Ok(Label::Multi(digits.read(&cell).unwrap_or_default()));
            }
            Some(Several::Names { separator }) => cell.items(separator),
            None => cell.items(None),
        };
        if self.map.is_none() && names.is_empty() {
            return Err(RowFaultKind::Unlabelled {
                found: None,
                nearest: None,
            });
        }
        let mut values = vec![0.0; self.map.as_ref().map_or(0, LabelMap::len)];
        for name in &names {
            let value = value::of_json(name, self.known())?.value()?;
            values[self.class_of(&value)? as usize] = 1.0;
        }
        Ok(Label::Multi(values))
    }

    /// The labels of a row that has a column of 0 and 1 for each; else the column at fault.
    pub(super) fn each<'c>(
        &self,
        table: &Table,
        row: &Row,
        columns: &'c [String],
    ) -> Result<Label, (&'c str, RowFaultKind)> {
        let bit = |column: &'c String| {
            let cell = table.get(row, column);
            if let Some(bit) = cell.and_then(value::bit_of_cell) {
                return Ok(bit);
            }
            let fault = match value::of_cell(cell, None).and_then(value::Seen::value) {
                Err(fault) => fault,
                Ok(value) => RowFaultKind::OddLabel {
                    found: shorten(&value.name),
                    what: "neither 0 nor 1",
                    others: "0 and 1",
                },
            };
            Err((column.as_str(), fault))
        };
        let bits: Result<Vec<f32>, _> = columns.iter().map(bit).collect();
        Ok(Label::Multi(bits?))
    }

    fn class_of(&self, value: &ClassValue) -> Result<u32, RowFaultKind> {
        if let Some(form) = self.form {
            form.judge(value)?;
        }
        let unlabelled = || RowFaultKind::Unlabelled {
            found: Some(shorten(&value.name)),
            nearest: None,
        };
        let Some(map) = &self.map else {
            return Err(match value.kind {
                Kind::Fraction => RowFaultKind::NotAClass {
                    found: shorten(&value.name),
                },
                Kind::Number(_) | Kind::Name | Kind::Truth(_) => unlabelled(),
            });
        };
        match map.class(&value.name) {
            Some(class) => Ok(class),
            None => Err(match value.kind {
                Kind::Number(-1) => unlabelled(),
                Kind::Fraction => RowFaultKind::NotAClass {
                    found: shorten(&value.name),
                },
                Kind::Number(_) | Kind::Name | Kind::Truth(_) => RowFaultKind::UnknownLabel {
                    label: shorten(&value.name),
                    nearest: nearest(&value.name, map.names()).map(str::to_owned),
                    known: map.names().to_vec(),
                    origin: self.origin,
                },
            }),
        }
    }

    /// The classes, for the caller.
    pub(super) fn into_map(self) -> Option<LabelMap> {
        self.map
    }
}

fn is_ignored(item: &Value) -> bool {
    item.as_i64() == Some(IGNORE_INDEX) || item.as_str().is_some_and(|text| text == "-100")
}

fn count(seen: Result<value::Seen, RowFaultKind>, census: &mut Census) {
    if let Ok(value::Seen::Value(value)) = seen {
        census.add(value);
    }
}

/// Counts over all rows, in parts that are then added.
pub(super) fn census_of(rows: &[Row], add: impl Fn(&Row, &mut Census) + Sync) -> Census {
    let parts = rows.par_iter().fold(Census::default, |mut census, row| {
        add(row, &mut census);
        census
    });
    parts.reduce(Census::default, Census::merge)
}

fn mixed(tie: Tie, table: &Table, column: &str) -> DataError {
    DataError::MixedLabels {
        path: table.path().into(),
        column: column.to_string(),
        count: tie.count,
        kinds: Box::new(tie.kinds),
    }
}
