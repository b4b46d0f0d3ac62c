//! What stands in a column of classes, counted over all its rows, so that no single row decides
//! what the others mean.

use std::collections::HashMap;

use super::value::{ClassValue, Kind};
use crate::error::{RowFaultKind, shorten};

/// Every value with its kind and count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Census {
    found: HashMap<String, Tally>,
}

#[derive(Debug, Clone, Copy)]
struct Tally {
    kind: Kind,
    count: u64,
    padded: u64,
}

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Words, `true` and `false` among them.
    Names,
    /// `true` and `false`, also as 1 and 0.
    Truths,
    /// Whole numbers from 0.
    Numbers,
    /// Nothing but -1 and 1.
    Signs,
    /// Numbers that are not whole.
    Fractions,
}

/// Kinds that a column holds equally often, so that neither is the fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tie {
    /// What they are, with an example of each.
    pub(crate) kinds: [(&'static str, String); 2],
    /// How often each stands there.
    pub(crate) count: u64,
}

impl Census {
    /// Counts a value.
    pub(crate) fn add(&mut self, value: ClassValue) {
        let tally = self.found.entry(value.name).or_insert(Tally {
            kind: value.kind,
            count: 0,
            padded: 0,
        });
        tally.count += 1;
        tally.padded += u64::from(value.padded);
    }

    /// The counts of two parts of a column together.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        for (name, tally) in other.found {
            let sum = self.found.entry(name).or_insert(Tally {
                kind: tally.kind,
                count: 0,
                padded: 0,
            });
            sum.count += tally.count;
            sum.padded += tally.padded;
        }
        self
    }

    /// How many values are of a kind.
    fn count(&self, is: impl Fn(Kind) -> bool) -> u64 {
        let of_kind = self.found.values().filter(|tally| is(tally.kind));
        of_kind.map(|tally| tally.count).sum()
    }

    fn example(&self, is: impl Fn(Kind) -> bool) -> String {
        let mut names = self.found.iter().filter(|(_, tally)| is(tally.kind));
        let first = names.by_ref().map(|(name, _)| name).min();
        first.cloned().unwrap_or_default()
    }

    /// How many values were counted.
    pub(crate) fn total(&self) -> u64 {
        self.count(|_| true)
    }

    /// How many of them are fractions.
    pub(crate) fn fractions(&self) -> u64 {
        self.count(|kind| kind == Kind::Fraction)
    }

    /// What the values are, by majority; `None` where there are none.
    pub(crate) fn form(&self) -> Result<Option<Form>, Tie> {
        let is_number = |kind| matches!(kind, Kind::Number(_));
        let is_numeric = |kind| matches!(kind, Kind::Number(_) | Kind::Fraction);
        let is_word = |kind| matches!(kind, Kind::Name | Kind::Truth(_));
        let is_bit = |kind| matches!(kind, Kind::Number(0 | 1));
        let (words, numeric) = (self.count(is_word), self.count(is_numeric));
        if words + numeric == 0 {
            return Ok(None);
        }
        let truths_alone = self.count(|kind| kind == Kind::Name) == 0;
        // 1 and 0 beside true and false say the same, however many of each there are.
        let same = truths_alone && self.count(is_bit) == numeric;
        if words == numeric && !same {
            let word = if truths_alone {
                "truth values"
            } else {
                "names"
            };
            return Err(Tie {
                kinds: [
                    (word, self.example(is_word)),
                    ("numbers", self.example(is_numeric)),
                ],
                count: words,
            });
        }
        if words >= numeric {
            return Ok(Some(match truths_alone {
                true => Form::Truths,
                false => Form::Names,
            }));
        }
        let (whole, fractions) = (self.count(is_number), self.fractions());
        if whole == fractions {
            return Err(Tie {
                kinds: [
                    ("whole numbers", self.example(is_number)),
                    ("fractions", self.example(|kind| kind == Kind::Fraction)),
                ],
                count: whole,
            });
        }
        Ok(Some(match () {
            () if fractions > whole => Form::Fractions,
            () if self.are_signs() => Form::Signs,
            () => Form::Numbers,
        }))
    }

    /// Whether -1 and 1 stand there and no other whole number.
    fn are_signs(&self) -> bool {
        let mut seen = [false; 2];
        for tally in self.found.values() {
            match tally.kind {
                Kind::Number(-1) => seen[0] = true,
                Kind::Number(1) => seen[1] = true,
                Kind::Number(_) => return false,
                Kind::Name | Kind::Truth(_) | Kind::Fraction => {}
            }
        }
        seen == [true; 2]
    }

    /// The names of classes under a form, each once.
    pub(crate) fn names(&self, form: Form) -> Vec<String> {
        if form == Form::Truths {
            return vec!["false".into(), "true".into()];
        }
        let is_class = |name: &String, tally: &Tally| {
            let value = ClassValue {
                name: name.clone(),
                kind: tally.kind,
                padded: false,
            };
            let is_truth = matches!(tally.kind, Kind::Truth(_));
            form.judge(&value).is_ok() && (form == Form::Names || !is_truth)
        };
        let found = self.found.iter();
        let classes = found.filter(|(name, tally)| is_class(name, tally));
        classes.map(|(name, _)| name.clone()).collect()
    }

    /// Names that stand there both with and without blanks around them.
    pub(crate) fn padded(&self) -> Vec<String> {
        let both = |tally: &Tally| tally.padded > 0 && tally.padded < tally.count;
        let mut names: Vec<String> = self
            .found
            .iter()
            .filter(|(_, tally)| both(tally))
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }
}

impl Form {
    /// Whether a value is a class of such a column; else the fault of its row.
    pub(crate) fn judge(self, value: &ClassValue) -> Result<(), RowFaultKind> {
        let found = || shorten(&value.name);
        let odd = |what, others| {
            Err(RowFaultKind::OddLabel {
                found: found(),
                what,
                others,
            })
        };
        match (self, value.kind) {
            (Self::Names, Kind::Name | Kind::Truth(_))
            | (Self::Truths, Kind::Truth(_) | Kind::Number(0 | 1))
            | (Self::Signs, Kind::Number(-1 | 1))
            // True is 1 and False is 0; whether the map has them is asked of the map.
            | (Self::Numbers, Kind::Truth(_)) => Ok(()),
            (_, Kind::Fraction) => Err(RowFaultKind::NotAClass { found: found() }),
            (Self::Names, Kind::Number(_)) => odd("a number", "names"),
            (Self::Truths, Kind::Number(_)) => odd("a number", "true and false"),
            (Self::Truths, Kind::Name) => odd("a name", "true and false"),
            (Self::Numbers | Self::Signs | Self::Fractions, Kind::Name)
            | (Self::Signs | Self::Fractions, Kind::Truth(_)) => odd("no number", "numbers"),
            (Self::Numbers | Self::Signs | Self::Fractions, Kind::Number(n)) => match n {
                0.. => Ok(()),
                // GLUE's mark of a row without a label.
                -1 => Err(RowFaultKind::Unlabelled {
                    found: Some(found()),
                    nearest: None,
                }),
                _ => odd("a negative number", "numbers from 0"),
            },
        }
    }
}
