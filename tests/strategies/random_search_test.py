import pytest

from nasjax.core.types import InputError
from nasjax.spaces.categorical import Categorical
from nasjax.strategies.random_search import random_search


@pytest.mark.parametrize("options", [{"population": 0}, {"max_evaluations": 0}])
def test_a_search_of_nothing_is_refused(options):
  with pytest.raises(InputError, match="population and max_evaluations must be"):
    random_search(Categorical((2, 3)), **options)
