"""Label Studio: tasks and answers from its JSON exports, and predictions by which it asks for tasks in our order.

Nothing of Label Studio is imported. Answers are the choices of one ``Choices`` tag, one in each annotation; it does not
matter what the tasks show. ``read_tasks`` reads a project, ``write_tasks`` and ``predictions`` make what goes back to
it, and ``Tasks.answer`` reads what a webhook sends.

Example:
    >>> tasks = read_tasks("project.json", label_config)
    >>> model = LastLayerLaplace.untrained(features, len(classes), class_names=tasks.control.classes)
    >>> selector = SequentialSelector(model, features)
    >>> for answer in tasks.answers:
    ...     if answer.label is not None:
    ...         selector.tell(answer.row, answer.label, annotator=answer.annotator)
    >>> rows = selector.ask(10)
    >>> write_tasks("to_import.json", tasks, rows, selector.posterior.predict_proba(features[rows]))
"""

from lapal_ext.interop.label_studio.annotations import Answer
from lapal_ext.interop.label_studio.control import Control, read_control
from lapal_ext.interop.label_studio.predictions import predictions, write_tasks
from lapal_ext.interop.label_studio.tasks import Tasks, read_tasks

__all__ = ["Answer", "Control", "Tasks", "predictions", "read_control", "read_tasks", "write_tasks"]
