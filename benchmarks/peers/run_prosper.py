"""One iteration of ProSper after another, in its own environment: `run_prosper.py SOURCE JOB.npz OUT.npz`.

The job holds rows [N, D] and parameters, the model's name and sizes, and how often; the answer what one
iteration makes of them, log-evidence of each row, and CPU seconds of each iteration.
"""

import sys
import time
import warnings

import numpy as np


def model_of(name, dims, units, candidates, gamma, values):
    from prosper.em.camodels import bsc_et, dsc_et, gsc_et, mca_et, mmca_et

    sizes = (dims, units, candidates, gamma)
    if name == "DSC":
        return dsc_et.DSC_ET(*sizes, states=np.array(values))
    if name == "GSC":
        return gsc_et.GSC(*sizes, sigma_sq_type="scalar")
    return {"BSC": bsc_et.BSC_ET, "MCA": mca_et.MCA_ET, "MMCA": mmca_et.MMCA_ET}[name](*sizes)


def iteration(model, params, rows, anneal):
    data = model.select_Hprimes(dict(params), {"y": rows})
    found = model.E_step(anneal, params, data)
    return found, model.M_step(anneal, params, found, data)


def main():
    source, job_file, out = sys.argv[1:]
    sys.path.insert(0, source)
    warnings.simplefilter("ignore")
    from prosper.em.annealing import LinearAnnealing

    job = np.load(job_file)
    sizes = [int(job[name]) for name in ("dims", "units", "candidates", "gamma")]
    model = model_of(str(job["model"]), *sizes, job["values"])
    anneal = LinearAnnealing(10)
    anneal["T"] = [(0, 1.0)]
    names = ("W", "pi", "sigma", "mu", "psi_sq", "sigma_sq")
    params = {name: job[f"param_{name}"] for name in names if f"param_{name}" in job}
    params = {name: value if value.ndim else float(value) for name, value in params.items()}
    seconds, found, new = [], {}, {}
    for _ in range(int(job["times"])):
        begin = time.process_time()
        found, new = iteration(model, dict(params), job["rows"].copy(), anneal)
        seconds.append(time.process_time() - begin)
    joint = found["logpj"] if "logpj" in found else np.zeros((1, 1))
    top = joint.max(1)
    evidence = top + np.log(np.exp(joint - top[:, None]).sum(1))
    learnt = {f"new_{name}": np.asarray(new[name]) for name in names if name in new}
    np.savez(out, evidence=evidence, seconds=seconds, **learnt)


if __name__ == "__main__":
    main()
