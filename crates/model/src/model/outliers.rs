//! Columns that products with integers keep beside: found on the first rows of a run, so that a
//! row's result never hangs on its neighbours, and recorded, so that a run goes on with the same.

use std::collections::BTreeMap;

use lowrank_engine::ops::loss::Targets;
use lowrank_engine::{BaseFormat, Gradients, Matrix, Outliers, PackedMatrix, WeightFormat};

use crate::error::ModelError;
use crate::model::{Model, PassOptions};
use crate::modules::Value;
use crate::pass::Batch;

impl Model {
    /// Runs a batch forward and backward, and keeps from now on the columns beside that are the
    /// largest there; the gradients go to `gradients`. Nothing happens where no weights are
    /// integers, or where the columns are known already. Errors if the batch or its targets do not
    /// fit.
    pub fn find_outliers(
        &mut self,
        batch: &Batch<'_>,
        targets: Targets<'_>,
        options: &PassOptions,
        gradients: &mut Gradients,
    ) -> Result<(), ModelError> {
        if !self.wants_outliers() {
            return Ok(());
        }
        self.device.start_observing();
        let passed = self.forward_backward(batch, targets, options, gradients);
        let observed = self.device.end_observing();
        passed?;
        let matrices = self.integer_matrices();
        matrices.for_each(|(_, matrix)| matrix.take_observed(&observed));
        self.knows_outliers = true;
        Ok(())
    }

    /// Whether weights are integers and the columns beside them are not known yet.
    pub fn wants_outliers(&self) -> bool {
        let is_int8 = self.device.numerics().weights == BaseFormat::Int8;
        is_int8 && !self.knows_outliers && !self.device.is_dry()
    }

    /// The columns that are kept beside, by the weight's name.
    pub fn outliers(&self) -> BTreeMap<String, Outliers> {
        let parameters = self.modules.iter().flat_map(|module| &module.parameters);
        let of = |parameter: &crate::modules::Parameter| {
            let matrix = integers(&parameter.value)?;
            Some((parameter.name.clone(), matrix.outliers().clone()))
        };
        parameters.filter_map(of).collect()
    }

    /// Sets the columns that are kept beside, as [`Model::outliers`] gave them.
    ///
    /// # Errors
    /// They are not those of this model's weights; nothing is changed behind the first that is not.
    pub fn set_outliers(&mut self, all: &BTreeMap<String, Outliers>) -> Result<(), ModelError> {
        let mut count = 0;
        for (name, matrix) in self.integer_matrices() {
            let found = all.get(name).cloned();
            if !found.is_some_and(|outliers| matrix.set_outliers(outliers)) {
                return Err(ModelError::State(format!(
                    "the columns kept beside `{name}` are not those of its int8 weight"
                )));
            }
            count += 1;
        }
        if count != all.len() {
            return Err(ModelError::State(format!(
                "columns are kept beside {} weights, but {count} are int8",
                all.len()
            )));
        }
        self.knows_outliers = true;
        Ok(())
    }

    fn integer_matrices(&mut self) -> impl Iterator<Item = (&str, &mut PackedMatrix)> {
        let modules = self.modules.iter_mut();
        let parameters = modules.flat_map(|module| &mut module.parameters);
        parameters.filter_map(|parameter| match &mut parameter.value {
            Value::Matrix(Matrix::Frozen(matrix)) | Value::Conv1d(Matrix::Frozen(matrix)) => {
                let is_int8 = matrix.format() == WeightFormat::Int8;
                is_int8.then_some((&*parameter.name, matrix))
            }
            Value::Rows(_) | Value::Matrix(_) | Value::Conv1d(_) => None,
        })
    }

    /// Errors where weights are integers: what is written or merged starts from the original ones.
    pub(crate) fn refuse_int8(&self, what: &str) -> Result<(), ModelError> {
        match self.device.numerics().weights {
            BaseFormat::Int8 => Err(ModelError::State(format!(
                "{what} starts from the original weights, and these were rounded to int8 when they were read"
            ))),
            _ => Ok(()),
        }
    }
}

fn integers(value: &Value) -> Option<&PackedMatrix> {
    match value {
        Value::Matrix(Matrix::Frozen(matrix)) | Value::Conv1d(Matrix::Frozen(matrix)) => {
            (matrix.format() == WeightFormat::Int8).then_some(matrix)
        }
        Value::Rows(_) | Value::Matrix(_) | Value::Conv1d(_) => None,
    }
}
