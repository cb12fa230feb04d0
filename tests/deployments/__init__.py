"""Deployments of MongoDB as people run them: several members, authentication, TLS.

    with deployment.running(directory, members=3, authentication=True) as set_:
        set_.kill(set_.primary)
        set_.wait_for_primary()

Each is made of real mongods of this machine, which end with whoever started them.
"""
