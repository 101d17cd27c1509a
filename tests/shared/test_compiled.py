import subprocess
import sys


def test_compiled_functions_load_without_scipy_and_may_still_multiply_matrices():
    code = ("import sys, numba, numpy as np\n"
            "from shared.compiled import load_arrays\n"
            "load_arrays()\n"
            "print('scipy.linalg' in sys.modules)\n"
            "print(numba.njit(lambda a: a @ a)(np.diag([2.0, 3.0])).tolist())\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "[[4.0, 0.0], [0.0, 9.0]]"]
