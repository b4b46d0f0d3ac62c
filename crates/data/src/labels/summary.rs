//! What the labels of a file are: how they are written, how often each occurs, and what is odd
//! about their names.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::value::{is_bare_sign, is_like_gap};
use super::{Label, LabelMap};
use crate::error::{name_list, shorten};

/// Names of classes that one line shows; it always says how many there are in all.
const SHOWN: usize = 12;
/// Above this number, classes are more likely a column of numbers or of texts.
const MANY_CLASSES: usize = 1000;
/// Where so many classes have one row each, they are more likely numbers of rows or texts.
const ALL_DIFFERENT: usize = 20;

/// How labels are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelLayout {
    /// One class a row.
    Class,
    /// One number a row.
    Number,
    /// Lists of names, or of the numbers of classes.
    Names {
        /// What parts names in a text.
        separator: Option<char>,
    },
    /// Vectors of 0 and 1.
    Vector,
    /// A column of 0 and 1 for each label.
    ColumnALabel,
    /// One class a word.
    ClassAWord,
    /// Tokens of a language model.
    Tokens,
}

/// How often the classes occur, or how numbers lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LabelBalance {
    /// There are none.
    None,
    /// Rows (for token classification: words) of each class, in order of the classes.
    Classes {
        /// Name and count.
        counts: Vec<ClassCount>,
        /// Counted labels in all.
        total: u64,
    },
    /// Real numbers.
    Numbers {
        /// The smallest.
        min: f64,
        /// On average.
        mean: f64,
        /// The standard deviation.
        std: f64,
        /// The largest.
        max: f64,
    },
}

/// How often a class occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Its name.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// Something about the labels that deserves a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum LabelOddity {
    /// Names that differ in case or blanks alone.
    NearlyEqual {
        /// Two or more names.
        names: Vec<String>,
    },
    /// Names that stand in the file both with and without blanks around them, and were taken as
    /// one.
    Padded {
        /// The names.
        names: Vec<String>,
    },
    /// Names that hold quotes or brackets, as a list does that was not read as one.
    Marked {
        /// The names.
        names: Vec<String>,
    },
    /// Names that may mean that nothing is known.
    LikeGaps {
        /// The names.
        names: Vec<String>,
    },
    /// Numbers with a decimal comma, which are names as they stand.
    DecimalCommas {
        /// The names.
        names: Vec<String>,
    },
    /// Every label is the same.
    SingleClass {
        /// Its name.
        name: String,
    },
    /// Number classes below the largest of which no row is.
    Holes {
        /// The numbers.
        names: Vec<String>,
    },
    /// Numbers that are names: they are not the numbers of the classes.
    NumbersAsNames {
        /// The first name, which is class 0.
        first: String,
    },
    /// So many classes that it is more likely a column of something else.
    ManyClasses {
        /// How many.
        classes: usize,
    },
}

impl fmt::Display for LabelOddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NearlyEqual { names } => write!(
                f,
                "classes whose names differ in case or blanks alone{}: {}",
                if names.iter().any(|name| name.contains(is_without_width)) {
                    " (one holds signs without width)"
                } else {
                    ""
                },
                name_list(names)
            ),
            Self::Padded { names } => write!(
                f,
                "labels that stand with and without blanks around them are one class: {}",
                name_list(names)
            ),
            Self::Marked { names } => write!(
                f,
                "names of classes with quotes or brackets: {}",
                name_list(names)
            ),
            Self::LikeGaps { names } => {
                write!(f, "classes that may mean no label: {}", name_list(names))
            }
            Self::DecimalCommas { names } => write!(
                f,
                "names of classes that are numbers with a decimal comma, which a point must stand for if \
                 they are to be predicted as numbers: {}",
                name_list(names)
            ),
            Self::SingleClass { name } => write!(f, "all labels are `{}`", shorten(name)),
            Self::Holes { names } => write!(
                f,
                "numbers are the numbers of classes, and no row is of class {}",
                name_list(names)
            ),
            Self::NumbersAsNames { first } => write!(
                f,
                "numbers are names here: `{}` is the first class; if the file lacks a class, name all with --labels",
                shorten(first)
            ),
            Self::ManyClasses { classes } => {
                write!(f, "{classes} classes: is this a column of classes?")
            }
        }
    }
}

/// Who named the classes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Naming {
    /// The file itself.
    Learned {
        /// Names that stand there both with and without blanks around them.
        padded: Vec<String>,
    },
    /// A pretrained head.
    OfHead,
    /// The user, or another file.
    Given,
}

/// What the labels of a file are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelSummary {
    /// How they are written.
    pub layout: LabelLayout,
    /// How often each occurs.
    pub balance: LabelBalance,
    /// Rows of several labels that have none of them.
    pub rows_with_none: u64,
    /// What deserves a look.
    pub oddities: Vec<LabelOddity>,
}

impl LabelSummary {
    /// Of no labels.
    pub(crate) fn new(layout: LabelLayout) -> Self {
        Self {
            layout,
            balance: LabelBalance::None,
            rows_with_none: 0,
            oddities: Vec::new(),
        }
    }

    /// Of the labels of a file.
    pub(crate) fn of<'a>(
        layout: LabelLayout,
        labels: impl Iterator<Item = &'a Label> + Clone,
        map: Option<&LabelMap>,
        naming: &Naming,
    ) -> Self {
        let balance = balance(labels.clone(), map);
        let oddities = oddities(&balance, map, layout, naming);
        let has_none = |label: &&Label| matches!(label, Label::Multi(values) if values.iter().all(|value| *value == 0.0));
        Self {
            layout,
            balance,
            rows_with_none: labels.filter(has_none).count() as u64,
            oddities,
        }
    }

    /// The classes with their counts, or how the numbers lie, in one line; long lists are cut.
    pub fn counts(&self) -> String {
        match &self.balance {
            LabelBalance::None => "none".into(),
            LabelBalance::Classes { counts, .. } => {
                let shown = counts.iter().take(SHOWN);
                let shown =
                    shown.map(|class| format!("`{}` {}", shorten(&class.name), class.count));
                let mut text = shown.collect::<Vec<_>>().join(", ");
                if counts.len() > SHOWN {
                    text.push_str(&format!(" and {} more classes", counts.len() - SHOWN));
                }
                if self.rows_with_none > 0 {
                    text.push_str(&format!(", none of them {}", self.rows_with_none));
                }
                text
            }
            LabelBalance::Numbers { min, mean, max, .. } => {
                // Numbers are kept as f32, which these decimals are.
                let (min, max) = (*min as f32, *max as f32);
                format!("numbers from {min} to {max}, {mean:.4} on average")
            }
        }
    }

    /// How the labels are written, in words.
    pub fn layout_name(&self) -> String {
        match self.layout {
            LabelLayout::Class => "one class a row".into(),
            LabelLayout::Number => "regression".into(),
            LabelLayout::Names { separator: None } => "several labels a row".into(),
            LabelLayout::Names {
                separator: Some(sign),
            } => format!("several labels a row, parted by `{sign}`"),
            LabelLayout::Vector => "several labels a row, vectors of 0 and 1".into(),
            LabelLayout::ColumnALabel => "several labels a row, a column of 0 and 1 each".into(),
            LabelLayout::ClassAWord => "one class a word".into(),
            LabelLayout::Tokens => "tokens".into(),
        }
    }
}

fn balance<'a>(labels: impl Iterator<Item = &'a Label>, map: Option<&LabelMap>) -> LabelBalance {
    let mut counts = vec![0u64; map.map_or(0, LabelMap::len)];
    let mut numbers: Vec<f64> = Vec::new();
    let mut labelled = false;
    for label in labels {
        labelled |= *label != Label::None;
        let mut count = |class: usize| {
            if let Some(count) = counts.get_mut(class) {
                *count += 1;
            }
        };
        match label {
            Label::None => {}
            Label::Class(class) => count(*class as usize),
            Label::Multi(values) => {
                let on = values.iter().enumerate().filter(|(_, value)| **value > 0.0);
                on.for_each(|(class, _)| count(class));
            }
            Label::Value(value) => numbers.push((*value).into()),
            Label::Tokens(labels) => {
                let classes = labels
                    .iter()
                    .filter_map(|label| usize::try_from(*label).ok());
                classes.for_each(count);
            }
        }
    }
    if !numbers.is_empty() {
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let squares = numbers.iter().map(|value| (value - mean).powi(2));
        return LabelBalance::Numbers {
            min: numbers.iter().copied().fold(f64::INFINITY, f64::min),
            mean,
            std: (squares.sum::<f64>() / n).sqrt(),
            max: numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
    }
    match map {
        Some(map) if labelled => LabelBalance::Classes {
            total: counts.iter().sum(),
            counts: map
                .names()
                .iter()
                .zip(counts)
                .map(|(name, count)| ClassCount {
                    name: name.clone(),
                    count,
                })
                .collect(),
        },
        Some(_) | None => LabelBalance::None,
    }
}

fn oddities(
    balance: &LabelBalance,
    map: Option<&LabelMap>,
    layout: LabelLayout,
    naming: &Naming,
) -> Vec<LabelOddity> {
    let (LabelBalance::Classes { counts, .. }, Some(map)) = (balance, map) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let names_with = |is: &dyn Fn(&str) -> bool| -> Vec<String> {
        let seen = counts.iter().filter(|class| class.count > 0);
        let odd = seen.filter(|class| is(&class.name));
        odd.map(|class| class.name.clone()).collect()
    };
    found.extend(nearly_equal(map.names()));
    if let Naming::Learned { padded } = naming
        && !padded.is_empty()
    {
        let names = padded.clone();
        found.push(LabelOddity::Padded { names });
    }
    let marks = ['"', '\'', '[', ']', '{', '}'];
    // An apostrophe within a word is no quote.
    let is_marked = |name: &str| name.starts_with(marks) || name.ends_with(marks);
    let names = names_with(&is_marked);
    if !names.is_empty() {
        found.push(LabelOddity::Marked { names });
    }
    // Tags of words are signs too: Penn's `.` and `,`.
    let is_sign = |name: &str| layout != LabelLayout::ClassAWord && is_bare_sign(name);
    let names = names_with(&|name| is_like_gap(name) || is_sign(name));
    if !names.is_empty() {
        found.push(LabelOddity::LikeGaps { names });
    }
    let names = names_with(&has_decimal_comma);
    if !names.is_empty() {
        found.push(LabelOddity::DecimalCommas { names });
    }
    let seen: Vec<&ClassCount> = counts.iter().filter(|class| class.count > 0).collect();
    if let [only] = seen.as_slice() {
        let name = only.name.clone();
        found.push(LabelOddity::SingleClass { name });
    }
    if map.is_of_numbers() {
        found.extend(odd_numbers(counts).filter(|odd| match naming {
            Naming::Learned { .. } => true,
            Naming::OfHead => matches!(odd, LabelOddity::NumbersAsNames { .. }),
            Naming::Given => false,
        }));
    }
    let is_alone = |class: &ClassCount| class.count <= 1;
    let each_its_own = counts.len() >= ALL_DIFFERENT && counts.iter().all(is_alone);
    if counts.len() > MANY_CLASSES || each_its_own {
        found.push(LabelOddity::ManyClasses {
            classes: counts.len(),
        });
    }
    found
}

/// `0,5`: digits on both sides of one comma.
fn has_decimal_comma(name: &str) -> bool {
    let are_digits = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    let unsigned = name.strip_prefix(['-', '+']).unwrap_or(name);
    let parts = unsigned.split_once(',');
    parts.is_some_and(|(whole, rest)| are_digits(whole) && are_digits(rest))
}

/// Whether a character is written without being seen.
fn is_without_width(c: char) -> bool {
    matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}'
    )
}

/// Names that are one but for case, blanks and signs without width, which spreadsheets and web
/// pages leave.
fn nearly_equal(names: &[String]) -> Vec<LabelOddity> {
    let mut groups: HashMap<String, Vec<String>> = HashMap::new();
    for name in names {
        let is_shown = |c: &char| !c.is_whitespace() && !is_without_width(*c);
        let folded: String = name.chars().filter(is_shown).collect();
        let group = groups.entry(folded.to_lowercase()).or_default();
        group.push(name.clone());
    }
    let mut found: Vec<Vec<String>> = groups.into_values().filter(|g| g.len() > 1).collect();
    found.sort();
    found
        .into_iter()
        .map(|names| LabelOddity::NearlyEqual { names })
        .collect()
}

fn odd_numbers(counts: &[ClassCount]) -> Option<LabelOddity> {
    let is_index = |(i, class): (usize, &ClassCount)| class.name == i.to_string();
    if !counts.iter().enumerate().all(is_index) {
        let first = counts.first()?.name.clone();
        return Some(LabelOddity::NumbersAsNames { first });
    }
    let empty = counts.iter().filter(|class| class.count == 0);
    let names: Vec<String> = empty.map(|class| class.name.clone()).collect();
    (!names.is_empty()).then_some(LabelOddity::Holes { names })
}
