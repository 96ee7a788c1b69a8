def validate_fold(options, fold, best, run_log):
    pass
