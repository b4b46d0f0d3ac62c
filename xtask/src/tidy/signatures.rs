//! The rules on parameters: no tuple and no bool, for at the call neither says what its values
//! mean. How many there are is clippy's matter (clippy.toml). Tests are free, and so are the
//! methods of a trait's `impl`: the trait is where its signatures are read.

use syn::visit::{self, Visit};

use super::files::Repository;

/// Functions whose bool is a value to work on, not a choice of what to do: file, function, reason.
const BOOLS_AS_DATA: &[(&str, &str, &str)] = &[
    (
        "crates/data/src/labels.rs",
        "class_of_truth",
        "a truth value of a table",
    ),
    (
        "crates/data/src/tokenizer.rs",
        "special_tokens",
        "the post-processor asks it so",
    ),
    (
        "crates/data/src/tokenizer/build.rs",
        "bert_normalizer",
        "a tokenizer's setting",
    ),
    ("crates/data/src/tokenizer/gguf.rs", "flag", DEFAULT),
    (
        "crates/data/src/tokenizer/settings.rs",
        "added_token",
        DEFAULT,
    ),
    (
        "crates/data/src/tokenizer/spm.rs",
        "generic_steps",
        "a tokenizer's setting",
    ),
    ("crates/engine/src/tape.rs", "push", NEEDED),
    ("crates/engine/src/tape.rs", "push_shared", NEEDED),
    ("crates/engine/src/tape.rs", "push_output", NEEDED),
    ("crates/engine/src/tape.rs", "push_node", NEEDED),
    ("crates/formats/src/config.rs", "bool_or", DEFAULT),
    (
        "crates/kernels/src/attention/arithmetic.rs",
        "multiply",
        "whether a product adds, as its blocks say it",
    ),
    ("crates/model/src/generate/options.rs", "require", CONDITION),
    ("crates/train/src/config/validate.rs", "require", CONDITION),
];

const NEEDED: &str = "whether an operand is trained, read from its node";
const DEFAULT: &str = "a flag's value where the file has none";
const CONDITION: &str = "the condition that is checked";

/// Finds parameters that are tuples or bools, and exemptions that no function needs any more.
pub fn parameters(repository: &Repository) -> Vec<String> {
    check(repository, BOOLS_AS_DATA)
}

fn check(repository: &Repository, exempt: &[(&str, &str, &str)]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut used = vec![false; exempt.len()];
    for file in (repository.files.iter()).filter(|file| file.is_rust() && !file.is_test()) {
        let parsed = match syn::parse_file(&file.text) {
            Ok(parsed) => parsed,
            Err(error) => {
                let line = error.span().start().line;
                faults.push(format!("{}:{line}: {error}", file.path));
                continue;
            }
        };
        let mut found = Signatures::default();
        found.visit_file(&parsed);
        for parameter in found.parameters {
            let is_this = |(path, name, _): &(&str, &str, &str)| {
                parameter.kind == "bool" && *path == file.path && *name == parameter.function
            };
            match exempt.iter().position(is_this) {
                Some(at) => used[at] = true,
                None => faults.push(format!(
                    "{}:{}: `{}` takes a {}; an enum or a struct says at the call what it means",
                    file.path, parameter.line, parameter.function, parameter.kind
                )),
            }
        }
    }
    let stale = exempt.iter().zip(used).filter(|(_, used)| !used);
    faults.extend(stale.map(|((path, name, _), _)| {
        format!(
            "{path}: `{name}` takes no bool; remove its exemption from xtask/src/tidy/signatures.rs"
        )
    }));
    faults
}

struct Parameter {
    line: usize,
    function: String,
    kind: &'static str,
}

#[derive(Default)]
struct Signatures {
    parameters: Vec<Parameter>,
}

impl<'ast> Visit<'ast> for Signatures {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        if block.trait_.is_none() && !is_test(&block.attrs) {
            visit::visit_item_impl(self, block);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        for input in &signature.inputs {
            let syn::FnArg::Typed(parameter) = input else {
                continue;
            };
            if let Some(kind) = kind(&parameter.ty) {
                self.parameters.push(Parameter {
                    line: signature.ident.span().start().line,
                    function: signature.ident.to_string(),
                    kind,
                });
            }
        }
        visit::visit_signature(self, signature);
    }
}

/// What a parameter may not be: a tuple of several, or a bool, by reference too.
fn kind(of: &syn::Type) -> Option<&'static str> {
    match of {
        syn::Type::Reference(reference) => kind(&reference.elem),
        syn::Type::Paren(inner) => kind(&inner.elem),
        syn::Type::Tuple(tuple) if !tuple.elems.is_empty() => Some("tuple"),
        syn::Type::Path(path) if path.path.is_ident("bool") => Some("bool"),
        _ => None,
    }
}

/// Does `#[cfg(test)]` or `#[test]` stand before it?
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        let names_test = |word: syn::Path| word.is_ident("test");
        path.is_ident("test")
            || (path.is_ident("cfg") && attribute.parse_args().is_ok_and(names_test))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Repository::of(&[(path, text)]), &[])
    }

    #[test]
    fn tuples_and_bools_are_found_in_functions_methods_and_traits() {
        let text = "fn a(x: u8, (y, z): (u8, u8)) {}\nimpl S {\n  fn b(&self, on: bool) {}\n}\n\
                    trait T {\n  fn c(at: &mut (u8, u8));\n}\nfn d() {\n  fn e(on: &bool) {}\n}\n";
        let faults = found("crates/x/src/a.rs", text);
        let places: Vec<_> = (faults.iter())
            .map(|fault| fault.split(';').next().unwrap_or_default())
            .collect();
        let want = [
            "crates/x/src/a.rs:1: `a` takes a tuple",
            "crates/x/src/a.rs:3: `b` takes a bool",
            "crates/x/src/a.rs:6: `c` takes a tuple",
            "crates/x/src/a.rs:9: `e` takes a bool",
        ];
        assert_eq!(places, want);
    }

    #[test]
    fn tests_impls_of_traits_units_and_results_are_free() {
        let text = "impl T for S {\n  fn c(on: bool) {}\n}\nfn f(x: ()) -> (u8, bool) { g() }\n\
                    fn h(of: Option<bool>, run: impl Fn(bool)) {}\n\
                    #[cfg(test)]\nmod tests {\n  fn t(on: bool) {}\n}\n#[cfg(test)]\nfn u(on: bool) {}\n";
        assert_eq!(found("crates/x/src/a.rs", text), [""; 0]);
        let bad = "fn t(on: bool) {}\n";
        assert_eq!(found("crates/x/tests/a.rs", bad), [""; 0]);
        assert_eq!(found("crates/x/src/a.rs", bad).len(), 1);
    }

    #[test]
    fn an_exemption_is_of_one_function_and_goes_with_it() {
        let exempt = [("a.rs", "f", "data")];
        let faults = |text: &str| check(&Repository::of(&[("a.rs", text)]), &exempt);
        assert_eq!(faults("fn f(on: bool) {}"), [""; 0]);
        assert_eq!(faults("fn f(on: bool) {}\nfn g(on: bool) {}").len(), 1);
        assert_eq!(faults("fn f(at: (u8, bool)) {}").len(), 2);
        assert!(faults("fn f() {}")[0].contains("remove its exemption"));
    }

    #[test]
    fn a_file_that_does_not_parse_is_named() {
        assert!(
            found("a.rs", "\nfn (")
                .first()
                .is_some_and(|f| f.starts_with("a.rs:2:"))
        );
    }
}
