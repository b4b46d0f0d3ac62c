//! What config.json says of labels: `id2label`, `label2id` and `num_labels`, any of which may be
//! missing, null, of numbers, or contradict another. Nothing here is an error: the head's tensors
//! say how wide it is, and what contradicts is said.

use std::collections::BTreeMap;

use lowrank_formats::ConfigReader;
use serde_json::Value;

/// Ids from here on are taken for a mistake.
const MOST_LABELS: usize = 1 << 20;

/// The fields of config.json about labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelFields {
    by_id: BTreeMap<usize, String>,
    num_labels: Option<usize>,
    /// What contradicts, one sentence each.
    pub notes: Vec<String>,
}

/// The names of a head's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadNames {
    /// One for each output, all different; transformers' `LABEL_0` where there is none.
    pub names: Vec<String>,
    /// What contradicts, one sentence each.
    pub notes: Vec<String>,
}

impl LabelFields {
    /// Reads the fields; whatever they hold.
    pub(crate) fn read(reader: &ConfigReader<'_>) -> Self {
        let mut fields = LabelFields::default();
        let by_id = fields.pairs(reader, "id2label", Side::Id);
        let by_name = fields.pairs(reader, "label2id", Side::Name);
        let is_stand_in = |names: &BTreeMap<usize, String>| {
            names.iter().all(|(id, name)| *name == placeholder(*id))
        };
        let differing = by_id.iter().find_map(|(id, name)| {
            let other = by_name.get(id)?;
            (other != name).then(|| format!("id {id} is `{name}` there and `{other}` here"))
        });
        fields.by_id = match differing {
            _ if by_id.is_empty() => by_name,
            None => by_id,
            Some(_) if is_stand_in(&by_name) => by_id,
            Some(_) if is_stand_in(&by_id) => by_name,
            Some(where_) => {
                fields.notes.push(format!(
                    "config.json: `id2label` and `label2id` contradict each other ({where_}); `id2label` counts"
                ));
                by_id
            }
        };
        fields.num_labels = ["num_labels", "_num_labels"]
            .iter()
            .find_map(|key| whole_number(reader.raw(key)?))
            .filter(|n| (1..MOST_LABELS).contains(n));
        let named = fields.by_id.last_key_value().map(|(id, _)| id + 1);
        if let (Some(named), Some(said)) = (named, fields.num_labels)
            && named != said
        {
            fields.notes.push(format!(
                "config.json: `num_labels` is {said}, but the names are those of {named} labels"
            ));
        }
        fields
    }

    /// How many labels the fields speak of, if they do.
    pub fn count(&self) -> Option<usize> {
        let named = self.by_id.last_key_value().map(|(id, _)| id + 1);
        named.or(self.num_labels)
    }

    /// The names of a head with that many outputs. Names of ids that it has not are those of
    /// another head: none counts then.
    pub fn names(&self, width: usize) -> HeadNames {
        let mut notes = Vec::new();
        let named = self.by_id.last_key_value().map_or(0, |(id, _)| id + 1);
        let none = BTreeMap::new();
        let mut by_id = &self.by_id;
        let stands_in = |(id, name): (&usize, &String)| *name == placeholder(*id);
        let is_real = !self.by_id.iter().all(stands_in);
        if named > width && is_real {
            notes.push(format!(
                "config.json names {named} labels, but the head has {width} outputs; they are called LABEL_0, LABEL_1, ... unless --labels names them"
            ));
            by_id = &none;
        } else if self.by_id.len() < width && is_real {
            notes.push(format!(
                "config.json names {} labels of the head's {width} outputs; the others are called by their number unless --labels names them",
                self.by_id.len()
            ));
        }
        let mut names: Vec<String> = Vec::with_capacity(width);
        for id in 0..width {
            let name = by_id.get(&id).cloned().unwrap_or_else(|| placeholder(id));
            if names.contains(&name) {
                notes.push(format!(
                    "config.json names two labels `{name}`; that of id {id} is called `{}`",
                    placeholder(id)
                ));
                names.push(placeholder(id));
            } else {
                names.push(name);
            }
        }
        HeadNames { names, notes }
    }

    /// The pairs of a map, ids first. A map that is the other way round is read as it is meant.
    fn pairs(
        &mut self,
        reader: &ConfigReader<'_>,
        key: &str,
        side: Side,
    ) -> BTreeMap<usize, String> {
        let mut pairs = BTreeMap::new();
        let entries: Vec<(Value, &Value)> = match reader.raw(key) {
            None | Some(Value::Null) => return pairs,
            Some(Value::Object(map)) => map
                .iter()
                .map(|(key, value)| (Value::String(key.clone()), value))
                .collect(),
            Some(Value::Array(list)) if side == Side::Id => list
                .iter()
                .enumerate()
                .map(|(id, name)| (Value::from(id), name))
                .collect(),
            Some(other) => {
                let kind = kind_of(other);
                self.notes.push(format!(
                    "config.json: `{key}` is {kind}, expected an object; it is not read"
                ));
                return pairs;
            }
        };
        let as_meant = |(first, second): &(Value, &Value)| match side {
            Side::Id => id_and_name(first, second),
            Side::Name => id_and_name(second, first),
        };
        let reversed = |(first, second): &(Value, &Value)| match side {
            Side::Id => id_and_name(second, first),
            Side::Name => id_and_name(first, second),
        };
        let is_reversed = !entries.iter().all(|e| as_meant(e).is_some())
            && entries.iter().all(|e| reversed(e).is_some());
        if is_reversed {
            self.notes.push(format!(
                "config.json: `{key}` is the other way round; it is read as it is meant"
            ));
        }
        for entry in &entries {
            let found = if is_reversed {
                reversed(entry)
            } else {
                as_meant(entry)
            };
            match found {
                Some((id, Some(name))) => {
                    pairs.entry(id).or_insert(name);
                }
                // A label without a name.
                Some((_, None)) => {}
                None => self.notes.push(format!(
                    "config.json: `{key}` has an entry that is no label's: {}: {}; it is not read",
                    entry.0, entry.1
                )),
            }
        }
        pairs
    }
}

/// Which side of a map stands first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Id,
    Name,
}

/// transformers' name of a label that nobody has named.
pub(crate) fn placeholder(id: usize) -> String {
    format!("LABEL_{id}")
}

fn id_and_name(id: &Value, name: &Value) -> Option<(usize, Option<String>)> {
    let id = whole_number(id).filter(|id| *id < MOST_LABELS)?;
    let name = match name {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        // As Python writes them.
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::Null => None,
        Value::Array(_) | Value::Object(_) => return None,
    };
    Some((id, name))
}

/// A whole number, as a number or as text.
fn whole_number(value: &Value) -> Option<usize> {
    match value {
        Value::Number(number) => {
            let integral = || {
                let float = number.as_f64()?;
                let fits = float >= 0.0 && float.fract() == 0.0 && float < MOST_LABELS as f64;
                fits.then_some(float as usize)
            };
            let whole = number.as_u64().and_then(|n| usize::try_from(n).ok());
            whole.or_else(integral)
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn fields(json: &Value) -> LabelFields {
        LabelFields::read(&ConfigReader::new(Path::new("config.json"), json))
    }

    #[track_caller]
    fn names(json: Value, width: usize, expected: &[&str], notes: &[&str]) {
        let fields = fields(&json);
        let found = fields.names(width);
        assert_eq!(found.names, expected, "{json}");
        let all = [fields.notes, found.notes].concat();
        assert_eq!(all.len(), notes.len(), "{json}: {all:?}");
        for (note, words) in all.iter().zip(notes) {
            assert!(note.contains(words), "{json}: {note}");
        }
    }

    #[test]
    fn names_come_from_whichever_field_has_them() {
        names(
            json!({ "id2label": { "0": "no", "1": "yes" } }),
            2,
            &["no", "yes"],
            &[],
        );
        names(
            json!({ "label2id": { "yes": 1, "no": 0 } }),
            2,
            &["no", "yes"],
            &[],
        );
        names(
            json!({ "label2id": { "yes": "1", "no": "0" } }),
            2,
            &["no", "yes"],
            &[],
        );
        names(
            json!({ "id2label": null, "num_labels": 3 }),
            2,
            &["LABEL_0", "LABEL_1"],
            &[],
        );
        names(json!({}), 1, &["LABEL_0"], &[]);
        names(json!({ "id2label": ["no", "yes"] }), 2, &["no", "yes"], &[]);
        names(
            json!({ "id2label": { "1": 5, "0": 1.5 } }),
            2,
            &["1.5", "5"],
            &[],
        );
        names(
            json!({ "id2label": { "0": false, "1": true } }),
            2,
            &["False", "True"],
            &[],
        );
    }

    #[test]
    fn a_map_that_is_the_other_way_round_is_read_as_it_is_meant() {
        let round = &["the other way round"];
        names(
            json!({ "id2label": { "no": 0, "yes": 1 } }),
            2,
            &["no", "yes"],
            round,
        );
        names(
            json!({ "label2id": { "0": "no", "1": "yes" } }),
            2,
            &["no", "yes"],
            round,
        );
        // Names that are numbers are ids and names alike: nothing is reversed.
        names(
            json!({ "id2label": { "0": "1", "1": "0" } }),
            2,
            &["1", "0"],
            &[],
        );
    }

    #[test]
    fn what_contradicts_is_said_and_never_guessed() {
        let both = json!({ "id2label": { "0": "a", "1": "b" }, "label2id": { "b": 0, "a": 1 } });
        names(both, 2, &["a", "b"], &["contradict each other"]);
        let stand_in = json!({ "id2label": { "0": "a", "1": "b" }, "label2id": { "LABEL_0": 0, "LABEL_1": 1 } });
        names(stand_in, 2, &["a", "b"], &[]);
        let stand_in = json!({ "id2label": { "0": "LABEL_0", "1": "LABEL_1" }, "label2id": { "b": 1, "a": 0 } });
        names(stand_in, 2, &["a", "b"], &[]);
        let of_three = json!({ "id2label": { "0": "a", "1": "b", "2": "c" } });
        names(
            of_three,
            2,
            &["LABEL_0", "LABEL_1"],
            &["names 3 labels, but the head has 2"],
        );
        let gap = json!({ "id2label": { "0": "a", "2": "c" } });
        names(
            gap,
            3,
            &["a", "LABEL_1", "c"],
            &["names 2 labels of the head's 3"],
        );
        let twice = json!({ "id2label": { "0": "a", "1": "a" } });
        names(twice, 2, &["a", "LABEL_1"], &["two labels `a`"]);
        let counted = json!({ "id2label": { "0": "a", "1": "b" }, "num_labels": 5 });
        names(counted, 2, &["a", "b"], &["`num_labels` is 5"]);
        names(
            json!({ "id2label": "a,b" }),
            1,
            &["LABEL_0"],
            &["is a text"],
        );
        let odd = json!({ "id2label": { "0": "a", "x": "b" } });
        names(odd, 2, &["a", "LABEL_1"], &["no label's", "names 1 labels"]);
    }
}
