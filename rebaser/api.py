"""What `from rebaser import …` offers: docs/api.md."""

from rebaser.check import Findings as Findings
from rebaser.check import check as check
from rebaser.errors import BusyError as BusyError
from rebaser.errors import RebaserError as RebaserError
from rebaser.errors import UsageError as UsageError
from rebaser.options import Options as Options
from rebaser.plan.placement import NoRoomError as NoRoomError
from rebaser.plan.placement import Placed as Placed
from rebaser.plan.placement import Plan as Plan
from rebaser.plan.placement import make_plan
from rebaser.plan.survey import Survey as Survey
from rebaser.plan.survey import survey as survey
from rebaser.report import Move as Move
from rebaser.report import Report as Report
from rebaser.run import run as run
from rebaser.scan.walk import Rules as Rules
from rebaser.scan.walk import Scan as Scan
from rebaser.scan.walk import scan as scan
from rebaser.tree import Tree as Tree
from rebaser.tree import find_tree as find_tree

plan = make_plan
