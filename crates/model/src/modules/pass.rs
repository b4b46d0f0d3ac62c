//! A tape together with the modules whose parameters its ops read.

use std::ops::{Deref, DerefMut};

use lowrank_engine::{Tape, Var};

use crate::modules::Modules;

/// One pass over a batch. It is a tape that lends parameters by id.
pub struct Pass<'t, 'm> {
    /// The model's modules.
    pub modules: &'m Modules,
    /// What the ops are recorded on.
    pub tape: &'t mut Tape<'m>,
}

impl<'m> Pass<'_, 'm> {
    /// As [`Tape::recompute`].
    pub fn recompute<F>(&mut self, x: Var, block: F) -> Var
    where
        F: Fn(&mut Pass<'_, 'm>, Var) -> Var + 'm,
    {
        let modules = self.modules;
        self.tape
            .recompute(x, move |tape, x| block(&mut Pass { modules, tape }, x))
    }

    /// As [`Tape::second_use`].
    pub fn second_use<T>(&mut self, block: impl FnOnce(&mut Pass<'_, 'm>) -> T) -> T {
        let modules = self.modules;
        self.tape
            .second_use(|tape| block(&mut Pass { modules, tape }))
    }
}

impl<'m> Deref for Pass<'_, 'm> {
    type Target = Tape<'m>;

    fn deref(&self) -> &Tape<'m> {
        self.tape
    }
}

impl<'m> DerefMut for Pass<'_, 'm> {
    fn deref_mut(&mut self) -> &mut Tape<'m> {
        self.tape
    }
}
