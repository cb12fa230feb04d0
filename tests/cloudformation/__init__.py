"""CloudFormation for the tests of the templates: moto, with what it lacks, and stacks in it."""
