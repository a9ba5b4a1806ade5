"""ki_ros: a Knowledge-Insulated vision-language-action policy on a DROID robot."""

from pkgutil import extend_path

# The generated interfaces (ki_ros.msg, ki_ros.srv) may be installed beside this directory rather than in it.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
